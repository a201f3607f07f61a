// What the AWS SDK for JavaScript v3 asks and understands. Endpoint, region and keys come from the environment, as for every user.
import assert from "node:assert/strict";
import net from "node:net";
import { after, test } from "node:test";
import * as cloudwatch from "@aws-sdk/client-cloudwatch";
import * as ec from "@aws-sdk/client-elasticache";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const client = new ec.ElastiCacheClient({});
const call = (operation, input = {}) => client.send(new ec[`${operation}Command`](input));
const patience = { client, maxWaitTime: 25 };

/** Send an inline command; the first line of the answer. */
const ask = ({ Address, Port }, command) =>
  new Promise((resolve, reject) => {
    const socket = net.connect(Port, Address, () => socket.write(`${command}\r\n`));
    socket.once("data", (data) => (socket.destroy(), resolve(data.toString().split("\r\n")[0])));
    socket.once("error", reject);
  });

/** Every item of a paginated list, and the number of pages. */
async function all(pages, list) {
  const items = [];
  let count = 0;
  for await (const page of pages) {
    items.push(...page[list]);
    count += 1;
  }
  return { items, count };
}

after(() => client.destroy());

test("the caller has an account of twelve digits", async () => {
  const who = await new STSClient({}).send(new GetCallerIdentityCommand({}));
  assert.match(who.Arn, /^arn:aws:iam::\d{12}:/);
  assert.equal(who.Account, who.Arn.split(":")[4]);
});

test("a parameter group: set, list, reset", async () => {
  const CacheParameterGroupName = "js-parameters";
  const made = await call("CreateCacheParameterGroup", {
    CacheParameterGroupName,
    CacheParameterGroupFamily: "valkey8",
    Description: "größer & <mehr>",
    Tags: [{ Key: "made-by", Value: "js" }],
  });
  assert.equal(made.CacheParameterGroup.Description, "größer & <mehr>");
  assert.equal(made.CacheParameterGroup.IsGlobal, false);
  await call("ModifyCacheParameterGroup", {
    CacheParameterGroupName,
    ParameterNameValues: [
      { ParameterName: "maxmemory-policy", ParameterValue: "allkeys-lru" },
      { ParameterName: "latency-tracking", ParameterValue: "no" },
    ],
  });
  const user = await call("DescribeCacheParameters", { CacheParameterGroupName, Source: "user" });
  assert.deepEqual(
    Object.fromEntries(user.Parameters.map((p) => [p.ParameterName, p.ParameterValue])),
    { "maxmemory-policy": "allkeys-lru", "latency-tracking": "no" },
  );
  const whole = await all(
    ec.paginateDescribeCacheParameters({ client, pageSize: 20 }, { CacheParameterGroupName }),
    "Parameters",
  );
  assert.ok(whole.count > 1);
  assert.equal(new Set(whole.items.map((p) => p.ParameterName)).size, whole.items.length);
  const { EngineDefaults } = await call("DescribeEngineDefaultParameters", { CacheParameterGroupFamily: "valkey8" });
  assert.ok(EngineDefaults.Parameters.length > 50);
  await call("ResetCacheParameterGroup", { CacheParameterGroupName, ResetAllParameters: true });
  assert.deepEqual((await call("DescribeCacheParameters", { CacheParameterGroupName, Source: "user" })).Parameters, []);
  const { CacheParameterGroups } = await call("DescribeCacheParameterGroups", { CacheParameterGroupName });
  assert.deepEqual(CacheParameterGroups.map((g) => g.CacheParameterGroupFamily), ["valkey8"]);
  await call("DeleteCacheParameterGroup", { CacheParameterGroupName });
  await assert.rejects(call("DescribeCacheParameterGroups", { CacheParameterGroupName }), ec.CacheParameterGroupNotFoundFault);
});

test("a replication group from creation to deletion", async () => {
  const ReplicationGroupId = "js-group";
  const { ReplicationGroup: creating } = await call("CreateReplicationGroup", {
    ReplicationGroupId,
    ReplicationGroupDescription: "made by JavaScript",
    Engine: "valkey",
    CacheNodeType: "cache.t3.micro",
    NumCacheClusters: 3,
    AutomaticFailoverEnabled: true,
    Tags: [{ Key: "team", Value: "a" }, { Key: "empty", Value: "" }],
  });
  assert.equal(creating.Status, "creating");
  const waited = await ec.waitUntilReplicationGroupAvailable(patience, { ReplicationGroupId });
  assert.equal(waited.state, "SUCCESS");

  const [group] = (await call("DescribeReplicationGroups", { ReplicationGroupId })).ReplicationGroups;
  assert.equal(group.Status, "available");
  assert.equal(group.Engine, "valkey");
  assert.equal(group.ClusterEnabled, false);
  assert.equal(group.ConfigurationEndpoint, undefined);
  assert.ok(group.ReplicationGroupCreateTime instanceof Date);
  assert.deepEqual(group.MemberClusters, ["js-group-001", "js-group-002", "js-group-003"]);
  const [shard] = group.NodeGroups;
  assert.deepEqual(shard.NodeGroupMembers.map((m) => m.CurrentRole), ["primary", "replica", "replica"]);
  assert.equal(await ask(shard.PrimaryEndpoint, "SET from js"), "+OK");
  assert.match(await ask(shard.ReaderEndpoint, "PING"), /PONG/);

  const clusters = await all(ec.paginateDescribeCacheClusters({ client, pageSize: 20 }, { ShowCacheNodeInfo: true }), "CacheClusters");
  const mine = clusters.items.filter((c) => c.ReplicationGroupId === ReplicationGroupId);
  assert.equal(mine.length, 3);
  for (const cluster of mine) {
    const [node] = cluster.CacheNodes;
    assert.equal(node.CacheNodeStatus, "available");
    assert.match(await ask(node.Endpoint, "PING"), /PONG/);
    assert.ok(node.CustomerAvailabilityZone);
    assert.deepEqual(cluster.CacheParameterGroup.CacheNodeIdsToReboot, []);
  }

  const ResourceName = group.ARN;
  await call("AddTagsToResource", { ResourceName, Tags: [{ Key: "team", Value: "b" }] });
  await call("RemoveTagsFromResource", { ResourceName, TagKeys: ["empty"] });
  assert.deepEqual((await call("ListTagsForResource", { ResourceName })).TagList, [{ Key: "team", Value: "b" }]);

  const allowed = await call("ListAllowedNodeTypeModifications", { ReplicationGroupId });
  assert.ok(allowed.ScaleUpModifications.every((name) => name.startsWith("cache.")));
  assert.ok(allowed.ScaleUpModifications.length > 1);

  await call("DecreaseReplicaCount", { ReplicationGroupId, NewReplicaCount: 1, ApplyImmediately: true });
  await ec.waitUntilReplicationGroupAvailable(patience, { ReplicationGroupId });
  const [smaller] = (await call("DescribeReplicationGroups", { ReplicationGroupId })).ReplicationGroups;
  assert.equal(smaller.MemberClusters.length, 2);

  const { Events } = await call("DescribeEvents", { SourceIdentifier: ReplicationGroupId, SourceType: "replication-group" });
  assert.ok(Events.length > 0);
  assert.ok(Events[0].Date instanceof Date);

  await assert.rejects(
    call("CreateReplicationGroup", { ReplicationGroupId, ReplicationGroupDescription: "again", CacheNodeType: "cache.t3.micro" }),
    ec.ReplicationGroupAlreadyExistsFault,
  );
  await call("DeleteReplicationGroup", { ReplicationGroupId });
  assert.equal((await ec.waitUntilReplicationGroupDeleted(patience, { ReplicationGroupId })).state, "SUCCESS");
});

test("a Memcached cluster and its configuration endpoint", async () => {
  const CacheClusterId = "js-memcached";
  await call("CreateCacheCluster", { CacheClusterId, Engine: "memcached", NumCacheNodes: 2, CacheNodeType: "cache.t3.micro" });
  await ec.waitUntilCacheClusterAvailable(patience, { CacheClusterId });
  const [cluster] = (await call("DescribeCacheClusters", { CacheClusterId, ShowCacheNodeInfo: true })).CacheClusters;
  assert.deepEqual(cluster.CacheNodes.map((n) => n.CacheNodeId), ["0001", "0002"]);
  assert.equal(await ask(cluster.ConfigurationEndpoint, "config get cluster"), await ask(cluster.ConfigurationEndpoint, "config get cluster"));
  assert.match(await ask(cluster.ConfigurationEndpoint, "config get cluster"), /^CONFIG cluster 0 \d+$/);
  await call("DeleteCacheCluster", { CacheClusterId });
  await ec.waitUntilCacheClusterDeleted(patience, { CacheClusterId });
});

test("a subnet group shows its subnets", async () => {
  const CacheSubnetGroupName = "js-subnets";
  const [standard] = (await call("DescribeCacheSubnetGroups", { CacheSubnetGroupName: "default" })).CacheSubnetGroups;
  const SubnetIds = standard.Subnets.map((s) => s.SubnetIdentifier).slice(0, 2);
  await call("CreateCacheSubnetGroup", { CacheSubnetGroupName, CacheSubnetGroupDescription: "d", SubnetIds });
  const [made] = (await call("DescribeCacheSubnetGroups", { CacheSubnetGroupName })).CacheSubnetGroups;
  assert.deepEqual(made.Subnets.map((s) => s.SubnetIdentifier), SubnetIds);
  assert.ok(made.Subnets.every((s) => s.SubnetAvailabilityZone.Name));
  await call("DeleteCacheSubnetGroup", { CacheSubnetGroupName });
  await assert.rejects(call("DescribeCacheSubnetGroups", { CacheSubnetGroupName }), ec.CacheSubnetGroupNotFoundFault);
});

test("engine versions and the users of an empty installation", async () => {
  const { CacheEngineVersions } = await call("DescribeCacheEngineVersions", { Engine: "valkey" });
  assert.ok(CacheEngineVersions.some((v) => v.CacheParameterGroupFamily === "valkey8"));
  const { Users } = await call("DescribeUsers");
  assert.deepEqual(Users.map((u) => u.UserName), ["default"]);
  assert.deepEqual((await call("DescribeServerlessCaches")).ServerlessCaches, []);
});

test("errors are typed, and not tried again", async () => {
  const missing = await call("DescribeReplicationGroups", { ReplicationGroupId: "js-none" }).catch((error) => error);
  assert.ok(missing instanceof ec.ReplicationGroupNotFoundFault);
  assert.equal(missing.$metadata.httpStatusCode, 404);
  assert.equal(missing.$fault, "client");
  assert.ok(missing.$metadata.requestId);
  await assert.rejects(call("DescribeCacheClusters", { CacheClusterId: "js-none" }), ec.CacheClusterNotFoundFault);
  await assert.rejects(
    call("CreateReplicationGroup", {
      ReplicationGroupId: "js-none",
      ReplicationGroupDescription: "d",
      Engine: "valkey",
      CacheNodeType: "cache.t3.micro",
      NumCacheClusters: 1,
      AutomaticFailoverEnabled: true,
    }),
    ec.InvalidParameterCombinationException,
  );
  await assert.rejects(call("DescribeCacheClusters", { MaxRecords: 7 }), ec.InvalidParameterValueException);
});

test("what is not served is refused at once, in the client's own protocol", async () => {
  const refused = await new cloudwatch.CloudWatchClient({})
    .send(new cloudwatch.DescribeInsightRulesCommand({}))
    .catch((error) => error);
  assert.ok(refused instanceof cloudwatch.CloudWatchServiceException);
  assert.equal(refused.name, "UnsupportedOperation");
  assert.equal(refused.$metadata.httpStatusCode, 400);
  assert.equal(refused.$metadata.attempts, 1);
  assert.match(refused.message, /not supported/);
});
