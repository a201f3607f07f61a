// What the AWS SDK for Go v2 asks and understands: the SDK that Terraform's provider is built on.
// Endpoint, region and keys come from the environment, as for every user. Ends with 1 at the first thing that is not as it must be.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/elasticache"
	"github.com/aws/aws-sdk-go-v2/service/elasticache/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

const patience = time.Minute

var (
	ctx    = context.Background()
	client *elasticache.Client
)

func main() {
	settings := got(config.LoadDefaultConfig(ctx))
	client = elasticache.NewFromConfig(settings)
	who := got(sts.NewFromConfig(settings).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))
	check(strings.Split(*who.Arn, ":")[4] == *who.Account, "the account of %s", *who.Arn)
	for _, story := range []struct {
		name string
		told func()
	}{
		{"parameter group", parameterGroup},
		{"replication group", replicationGroup},
		{"memcached", memcached},
		{"subnet group", subnetGroup},
		{"errors", typedErrors},
	} {
		story.told()
		fmt.Println("ok", story.name)
	}
}

func got[T any](value T, err error) T {
	check(err == nil, "%v", err)
	return value
}

func check(holds bool, format string, what ...any) {
	if !holds {
		panic(fmt.Sprintf(format, what...))
	}
}

// fails checks that the error is of the type T, which the SDK chooses by the code on the wire.
func fails[T error](err error) {
	var typed T
	check(errors.As(err, &typed), "%T was expected, not %v", typed, err)
}

func ask(endpoint *types.Endpoint, command string) string {
	connection := got(net.Dial("tcp", fmt.Sprintf("%s:%d", *endpoint.Address, *endpoint.Port)))
	defer connection.Close()
	got(fmt.Fprintf(connection, "%s\r\n", command))
	return strings.TrimSpace(got(bufio.NewReader(connection).ReadString('\n')))
}

func parameterGroup() {
	name := aws.String("go-parameters")
	got(client.CreateCacheParameterGroup(ctx, &elasticache.CreateCacheParameterGroupInput{
		CacheParameterGroupName: name, CacheParameterGroupFamily: aws.String("valkey8"), Description: aws.String("d"),
		Tags: []types.Tag{{Key: aws.String("made-by"), Value: aws.String("go")}},
	}))
	asked := types.ParameterNameValue{ParameterName: aws.String("maxmemory-policy"), ParameterValue: aws.String("allkeys-lru")}
	got(client.ModifyCacheParameterGroup(ctx, &elasticache.ModifyCacheParameterGroupInput{
		CacheParameterGroupName: name, ParameterNameValues: []types.ParameterNameValue{asked},
	}))
	user := got(client.DescribeCacheParameters(ctx, &elasticache.DescribeCacheParametersInput{
		CacheParameterGroupName: name, Source: aws.String("user"),
	}))
	check(len(user.Parameters) == 1 && *user.Parameters[0].ParameterValue == "allkeys-lru", "Source=user: %d", len(user.Parameters))
	pages, names := 0, map[string]bool{}
	paginator := elasticache.NewDescribeCacheParametersPaginator(client, &elasticache.DescribeCacheParametersInput{
		CacheParameterGroupName: name, MaxRecords: aws.Int32(20),
	})
	for ; paginator.HasMorePages(); pages++ {
		for _, parameter := range got(paginator.NextPage(ctx)).Parameters {
			check(!names[*parameter.ParameterName], "%s is listed twice", *parameter.ParameterName)
			names[*parameter.ParameterName] = true
		}
	}
	check(pages > 1 && len(names) > 20, "%d pages, %d parameters", pages, len(names))
	got(client.ResetCacheParameterGroup(ctx, &elasticache.ResetCacheParameterGroupInput{
		CacheParameterGroupName: name, ParameterNameValues: []types.ParameterNameValue{asked},
	}))
	groups := got(client.DescribeCacheParameterGroups(ctx, &elasticache.DescribeCacheParameterGroupsInput{CacheParameterGroupName: name}))
	check(len(groups.CacheParameterGroups) == 1, "one group by name")
	tags := got(client.ListTagsForResource(ctx, &elasticache.ListTagsForResourceInput{ResourceName: groups.CacheParameterGroups[0].ARN}))
	check(len(tags.TagList) == 1 && *tags.TagList[0].Value == "go", "tags: %v", tags.TagList)
	// An answer without a Result element.
	got(client.DeleteCacheParameterGroup(ctx, &elasticache.DeleteCacheParameterGroupInput{CacheParameterGroupName: name}))
	_, err := client.DescribeCacheParameterGroups(ctx, &elasticache.DescribeCacheParameterGroupsInput{CacheParameterGroupName: name})
	fails[*types.CacheParameterGroupNotFoundFault](err)
}

func replicationGroup() {
	id := aws.String("go-group")
	byID := &elasticache.DescribeReplicationGroupsInput{ReplicationGroupId: id}
	available := func() types.ReplicationGroup {
		check(elasticache.NewReplicationGroupAvailableWaiter(client).Wait(ctx, byID, patience) == nil, "not available")
		return got(client.DescribeReplicationGroups(ctx, byID)).ReplicationGroups[0]
	}
	create := &elasticache.CreateReplicationGroupInput{
		ReplicationGroupId: id, ReplicationGroupDescription: aws.String("größer & <mehr>"), Engine: aws.String("valkey"),
		CacheNodeType: aws.String("cache.t3.micro"), NumCacheClusters: aws.Int32(2), AutomaticFailoverEnabled: aws.Bool(true),
		Tags: []types.Tag{{Key: aws.String("team"), Value: aws.String("a")}, {Key: aws.String("empty"), Value: aws.String("")}},
	}
	got(client.CreateReplicationGroup(ctx, create))
	group := available()
	check(slices.Equal(group.MemberClusters, []string{"go-group-001", "go-group-002"}), "members: %v", group.MemberClusters)
	check(len(group.NodeGroups) == 1 && len(group.NodeGroups[0].NodeGroupMembers) == 2, "node groups: %v", group.NodeGroups)
	check(group.ConfigurationEndpoint == nil && *group.Engine == "valkey" && !*group.ClusterEnabled, "%+v", group)
	check(*group.Description == "größer & <mehr>", "description: %s", *group.Description)
	check(group.AutomaticFailover == types.AutomaticFailoverStatusEnabled, "automatic failover: %s", group.AutomaticFailover)
	check(time.Since(*group.ReplicationGroupCreateTime).Abs() < time.Hour, "created at %s", group.ReplicationGroupCreateTime)
	check(ask(group.NodeGroups[0].PrimaryEndpoint, "SET from go") == "+OK", "the primary takes a write")

	members := 0
	clusters := elasticache.NewDescribeCacheClustersPaginator(client, &elasticache.DescribeCacheClustersInput{
		ShowCacheNodeInfo: aws.Bool(true), MaxRecords: aws.Int32(20),
	})
	for clusters.HasMorePages() {
		for _, cluster := range got(clusters.NextPage(ctx)).CacheClusters {
			if aws.ToString(cluster.ReplicationGroupId) == *id {
				members++
				check(len(cluster.CacheNodes) == 1, "nodes of %s: %v", *cluster.CacheClusterId, cluster.CacheNodes)
				check(ask(cluster.CacheNodes[0].Endpoint, "PING") == "+PONG", "%s answers", *cluster.CacheClusterId)
			}
		}
	}
	check(members == 2, "%d members are listed as clusters", members)

	got(client.IncreaseReplicaCount(ctx, &elasticache.IncreaseReplicaCountInput{
		ReplicationGroupId: id, NewReplicaCount: aws.Int32(2), ApplyImmediately: aws.Bool(true),
	}))
	check(len(available().MemberClusters) == 3, "one more replica")

	got(client.AddTagsToResource(ctx, &elasticache.AddTagsToResourceInput{
		ResourceName: group.ARN, Tags: []types.Tag{{Key: aws.String("team"), Value: aws.String("b")}},
	}))
	got(client.RemoveTagsFromResource(ctx, &elasticache.RemoveTagsFromResourceInput{ResourceName: group.ARN, TagKeys: []string{"empty"}}))
	tags := got(client.ListTagsForResource(ctx, &elasticache.ListTagsForResourceInput{ResourceName: group.ARN}))
	check(len(tags.TagList) == 1 && *tags.TagList[0].Value == "b", "tags: %v", tags.TagList)

	events := got(client.DescribeEvents(ctx, &elasticache.DescribeEventsInput{
		SourceIdentifier: id, SourceType: types.SourceTypeReplicationGroup,
	}))
	check(len(events.Events) > 0 && events.Events[0].Date != nil, "events: %v", events.Events)
	allowed := got(client.ListAllowedNodeTypeModifications(ctx, &elasticache.ListAllowedNodeTypeModificationsInput{ReplicationGroupId: id}))
	check(len(allowed.ScaleUpModifications) > 0, "larger node types")
	_, err := client.CreateReplicationGroup(ctx, create)
	fails[*types.ReplicationGroupAlreadyExistsFault](err)

	got(client.DeleteReplicationGroup(ctx, &elasticache.DeleteReplicationGroupInput{ReplicationGroupId: id}))
	err = elasticache.NewReplicationGroupDeletedWaiter(client).Wait(ctx, byID, patience)
	check(err == nil, "deleted: %v", err)
}

func memcached() {
	id := aws.String("go-memcached")
	byID := &elasticache.DescribeCacheClustersInput{CacheClusterId: id, ShowCacheNodeInfo: aws.Bool(true)}
	got(client.CreateCacheCluster(ctx, &elasticache.CreateCacheClusterInput{
		CacheClusterId: id, Engine: aws.String("memcached"), NumCacheNodes: aws.Int32(2), CacheNodeType: aws.String("cache.t3.micro"),
	}))
	err := elasticache.NewCacheClusterAvailableWaiter(client).Wait(ctx, byID, patience)
	check(err == nil, "available: %v", err)
	cluster := got(client.DescribeCacheClusters(ctx, byID)).CacheClusters[0]
	check(len(cluster.CacheNodes) == 2, "nodes: %v", cluster.CacheNodes)
	check(strings.HasPrefix(ask(cluster.ConfigurationEndpoint, "config get cluster"), "CONFIG cluster 0 "), "auto discovery")
	got(client.DeleteCacheCluster(ctx, &elasticache.DeleteCacheClusterInput{CacheClusterId: id}))
	err = elasticache.NewCacheClusterDeletedWaiter(client).Wait(ctx, byID, patience)
	check(err == nil, "deleted: %v", err)
}

func subnetGroup() {
	name := aws.String("go-subnets")
	find := func(name *string) (*elasticache.DescribeCacheSubnetGroupsOutput, error) {
		return client.DescribeCacheSubnetGroups(ctx, &elasticache.DescribeCacheSubnetGroupsInput{CacheSubnetGroupName: name})
	}
	var ids []string
	for _, subnet := range got(find(aws.String("default"))).CacheSubnetGroups[0].Subnets {
		ids = append(ids, *subnet.SubnetIdentifier)
	}
	check(len(ids) > 1, "subnets of the default group: %v", ids)
	got(client.CreateCacheSubnetGroup(ctx, &elasticache.CreateCacheSubnetGroupInput{
		CacheSubnetGroupName: name, CacheSubnetGroupDescription: aws.String("d"), SubnetIds: ids,
	}))
	check(len(got(find(name)).CacheSubnetGroups[0].Subnets) == len(ids), "all subnets are shown")
	got(client.DeleteCacheSubnetGroup(ctx, &elasticache.DeleteCacheSubnetGroupInput{CacheSubnetGroupName: name}))
	_, err := find(name)
	fails[*types.CacheSubnetGroupNotFoundFault](err)
}

func typedErrors() {
	_, err := client.DescribeReplicationGroups(ctx, &elasticache.DescribeReplicationGroupsInput{ReplicationGroupId: aws.String("go-none")})
	fails[*types.ReplicationGroupNotFoundFault](err)
	var api smithy.APIError
	check(errors.As(err, &api) && api.ErrorFault() == smithy.FaultClient && api.ErrorMessage() != "", "%v", err)
	_, err = client.DescribeCacheClusters(ctx, &elasticache.DescribeCacheClustersInput{CacheClusterId: aws.String("go-none")})
	fails[*types.CacheClusterNotFoundFault](err)
	_, err = client.DescribeCacheClusters(ctx, &elasticache.DescribeCacheClustersInput{MaxRecords: aws.Int32(7)})
	fails[*types.InvalidParameterValueException](err)
	_, err = client.CreateReplicationGroup(ctx, &elasticache.CreateReplicationGroupInput{
		ReplicationGroupId: aws.String("go-none"), ReplicationGroupDescription: aws.String("d"), Engine: aws.String("valkey"),
		CacheNodeType: aws.String("cache.t3.micro"), NumCacheClusters: aws.Int32(1), AutomaticFailoverEnabled: aws.Bool(true),
	})
	fails[*types.InvalidParameterCombinationException](err)
	versions := got(client.DescribeCacheEngineVersions(ctx, &elasticache.DescribeCacheEngineVersionsInput{Engine: aws.String("valkey")}))
	check(len(versions.CacheEngineVersions) > 0, "engine versions")
}

func init() {
	for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID"} {
		if os.Getenv(name) == "" {
			fmt.Fprintln(os.Stderr, "needs", name)
			os.Exit(2)
		}
	}
}
