"""The calls of Terraform's AWS provider in its order, and what it makes of the answers.

Written after the provider's own resources (``internal/service/elasticache``): which calls follow on which, which states may be seen
while it waits, which errors it passes over, and which of the answers it compares with the configuration at the next plan. It does
not sleep before its first poll, and asks unheld lists as well, so it sees more states than the provider would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from botocore.exceptions import ClientError

State = dict[str, Any]

_PATIENCE_SECONDS = 300.0
"""The provider's own are tens of minutes; moving a third of all slots takes over a minute where four share two cores."""


def code_of(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


class Provider:
    """One provider with its client. Errors and states that would end ``terraform apply`` are raised."""

    def __init__(self, client: Any) -> None:
        self.client = client

    # ------------------------------------------------------------------ rules for every resource

    def tags(self, arn: str) -> dict[str, str]:
        """Asked after every read, in whatever state the resource is."""
        listed = self.client.list_tags_for_resource(ResourceName=arn)["TagList"]
        return {tag["Key"]: tag["Value"] for tag in listed if not tag["Key"].startswith("aws:")}

    def set_tags(self, arn: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        if gone := [key for key in before if before[key] != after.get(key)]:
            self.client.remove_tags_from_resource(ResourceName=arn, TagKeys=gone)
        if new := [{"Key": key, "Value": after[key]} for key in after if before.get(key) != after[key]]:
            self.client.add_tags_to_resource(ResourceName=arn, Tags=new)

    def one(self, operation: str, result: str, missing: str, **by: Any) -> Any:
        """The one resource of that id; None only for the modelled error."""
        try:
            found = [each for page in self.client.get_paginator(operation).paginate(**by) for each in page[result]]
        except ClientError as error:
            if code_of(error) == missing:
                return None
            raise
        assert len(found) == 1, f"{operation} by id gave {len(found)}"
        return found[0]

    def wait(self, look: Callable[[], str | None], pending: Collection[str], target: str | None) -> None:
        """Until a status is ``target``; None: until it is gone. Any other status must be a pending one."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while (status := look()) != target:
            assert status is not None, f"it is gone while waiting for {target}"
            assert status in pending, f"unexpected state '{status}', wanted target '{target}'"
            assert time.monotonic() < until, f"still {status}"

    # ------------------------------------------------------------------ aws_elasticache_subnet_group

    def find_subnet_group(self, name: str) -> Any:
        return self.one(
            "describe_cache_subnet_groups", "CacheSubnetGroups", "CacheSubnetGroupNotFoundFault", CacheSubnetGroupName=name
        )

    def read_subnet_group(self, name: str) -> State | None:
        if (found := self.find_subnet_group(name)) is None:
            return None
        return {
            "arn": found["ARN"],
            "name": found["CacheSubnetGroupName"],
            "description": found["CacheSubnetGroupDescription"],
            "subnet_ids": {subnet["SubnetIdentifier"] for subnet in found["Subnets"]},
            "vpc_id": found["VpcId"],
            "tags": self.tags(found["ARN"]),
        }

    # ------------------------------------------------------------------ aws_elasticache_parameter_group

    def modify_parameters(self, name: str, values: Mapping[str, str]) -> None:
        pairs = [{"ParameterName": key, "ParameterValue": value} for key, value in values.items()]
        for start in range(0, len(pairs), 20):
            self.client.modify_cache_parameter_group(CacheParameterGroupName=name, ParameterNameValues=pairs[start : start + 20])

    def update_parameters(self, name: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Those that went are reset first, with the values that they had."""
        gone = [{"ParameterName": key, "ParameterValue": before[key]} for key in before if key not in after]
        for start in range(0, len(gone), 20):
            self.client.reset_cache_parameter_group(CacheParameterGroupName=name, ParameterNameValues=gone[start : start + 20])
        self.modify_parameters(name, {key: value for key, value in after.items() if before.get(key) != value})

    def read_parameter_group(self, name: str) -> State | None:
        found = self.one(
            "describe_cache_parameter_groups", "CacheParameterGroups", "CacheParameterGroupNotFound", CacheParameterGroupName=name
        )
        if found is None:
            return None
        one_page = self.client.describe_cache_parameters(CacheParameterGroupName=name, Source="user")
        return {
            "arn": found["ARN"],
            "name": found["CacheParameterGroupName"],
            "family": found["CacheParameterGroupFamily"],
            "description": found["Description"],
            "parameter": {p["ParameterName"].lower(): p["ParameterValue"] for p in one_page["Parameters"]},
            "tags": self.tags(found["ARN"]),
        }

    # ------------------------------------------------------------------ aws_elasticache_cluster

    def find_cluster(self, cluster_id: str) -> Any:
        by = {"CacheClusterId": cluster_id, "ShowCacheNodeInfo": True}
        return self.one("describe_cache_clusters", "CacheClusters", "CacheClusterNotFound", **by)

    def cluster_status(self, cluster_id: str) -> str | None:
        """As a list shows it first, which is never held; then by id, as the provider asks."""
        listed = self.clusters().get(cluster_id)
        if listed is not None and listed["CacheClusterStatus"] != "available":
            return str(listed["CacheClusterStatus"])
        found = self.find_cluster(cluster_id)
        return found and str(found["CacheClusterStatus"])

    def clusters(self) -> dict[str, Any]:
        pages = self.client.get_paginator("describe_cache_clusters").paginate()
        return {cluster["CacheClusterId"]: cluster for page in pages for cluster in page["CacheClusters"]}

    def cluster_available(self, cluster_id: str) -> None:
        pending = {"creating", "modifying", "snapshotting", "rebooting cluster nodes"}
        self.wait(lambda: self.cluster_status(cluster_id), pending, "available")

    def cluster_gone(self, cluster_id: str) -> None:
        pending = {"creating", "available", "modifying", "deleting", "incompatible-network", "restore-failed", "snapshotting"}
        self.wait(lambda: self.cluster_status(cluster_id), pending, None)

    def read_cluster(self, cluster_id: str) -> State | None:
        if (found := self.find_cluster(cluster_id)) is None:
            return None
        nodes = sorted(found["CacheNodes"], key=lambda node: node["CacheNodeId"])
        endpoint = found.get("ConfigurationEndpoint")
        state = self._cluster_attributes(found) | {
            "arn": found["ARN"],
            "cluster_id": found["CacheClusterId"],
            "cache_nodes": [
                (n["CacheNodeId"], n["Endpoint"]["Address"], n["Endpoint"]["Port"], n["CustomerAvailabilityZone"]) for n in nodes
            ],
            "num_cache_nodes": found["NumCacheNodes"],
            "port": (endpoint or nodes[0]["Endpoint"])["Port"],
            "configuration_endpoint": endpoint and f"{endpoint['Address']}:{endpoint['Port']}",
            "replication_group_id": found.get("ReplicationGroupId"),
            "snapshot_retention_limit": found.get("SnapshotRetentionLimit", 0),
            "snapshot_window": found.get("SnapshotWindow"),
            "availability_zone": found["PreferredAvailabilityZone"],
            "az_mode": "cross-az" if found["PreferredAvailabilityZone"] == "Multiple" else "single-az",
            "ip_discovery": found["IpDiscovery"],
            "network_type": found["NetworkType"],
            "log_delivery_configuration": found.get("LogDeliveryConfigurations", []),
            "tags": self.tags(found["ARN"]),
        }
        if found.get("NotificationConfiguration", {}).get("TopicStatus") == "active":
            state["notification_topic_arn"] = found["NotificationConfiguration"]["TopicArn"]
        return state

    @staticmethod
    def _cluster_attributes(found: Any) -> State:
        """What cluster and replication group both read from a cluster."""
        major, minor, patch = (int(part) for part in found["EngineVersion"].split("."))
        short = found["Engine"] != "memcached" and major > 5
        return {
            "engine": found["Engine"],
            "engine_version": f"{major}.{minor}" if short else found["EngineVersion"],
            "engine_version_actual": f"{major}.{minor}.{patch}",
            "node_type": found["CacheNodeType"],
            "parameter_group_name": found["CacheParameterGroup"]["CacheParameterGroupName"],
            "subnet_group_name": found["CacheSubnetGroupName"],
            "security_group_ids": {group["SecurityGroupId"] for group in found["SecurityGroups"]},
            "maintenance_window": found["PreferredMaintenanceWindow"].lower(),
            "auto_minor_version_upgrade": found["AutoMinorVersionUpgrade"],
            "transit_encryption_enabled": found["TransitEncryptionEnabled"],
        }

    # ------------------------------------------------------------------ aws_elasticache_replication_group

    def find_group(self, group_id: str) -> Any:
        by = {"ReplicationGroupId": group_id}
        return self.one("describe_replication_groups", "ReplicationGroups", "ReplicationGroupNotFoundFault", **by)

    def group_status(self, group_id: str) -> str | None:
        pages = self.client.get_paginator("describe_replication_groups").paginate()
        listed = {g["ReplicationGroupId"]: str(g["Status"]) for page in pages for g in page["ReplicationGroups"]}
        if listed.get(group_id, "available") != "available":
            return listed[group_id]
        found = self.find_group(group_id)
        return found and str(found["Status"])

    def group_available(self, group_id: str) -> None:
        self.wait(lambda: self.group_status(group_id), {"creating", "modifying", "snapshotting"}, "available")

    def group_gone(self, group_id: str) -> None:
        self.wait(lambda: self.group_status(group_id), {"creating", "available", "deleting"}, None)

    def members_available(self, group_id: str) -> None:
        """The wait after a count went up: on the member clusters, out of an unfiltered list."""
        pending, until = {"creating", "deleting", "modifying", "snapshotting"}, time.monotonic() + _PATIENCE_SECONDS
        while True:
            clusters = self.clusters()
            statuses = {clusters[name]["CacheClusterStatus"] for name in self.find_group(group_id)["MemberClusters"]}
            if statuses == {"available"}:
                return
            assert statuses <= pending | {"available"}, f"unexpected states {statuses}"
            assert time.monotonic() < until, f"still {statuses}"

    def scale_up(self, group_id: str, count: int) -> None:
        self.group_available(group_id)
        self.client.increase_replica_count(ReplicationGroupId=group_id, NewReplicaCount=count - 1, ApplyImmediately=True)
        self.members_available(group_id)
        self.group_available(group_id)

    def modify_group(self, group_id: str, **changes: Any) -> None:
        self.group_available(group_id)
        try:
            self.client.modify_replication_group(ReplicationGroupId=group_id, ApplyImmediately=True, **changes)
        except ClientError as error:
            if code_of(error) != "InvalidParameterCombination" or "No modifications were requested" not in str(error):
                raise
        self.group_available(group_id)

    def scale_down(self, group_id: str, count: int) -> None:
        self.group_available(group_id)
        self.client.decrease_replica_count(ReplicationGroupId=group_id, NewReplicaCount=count - 1, ApplyImmediately=True)
        self.group_available(group_id)

    def scale_shards(self, group_id: str, count: int) -> None:
        """The shards that go are the last of the list."""
        self.group_available(group_id)
        ids = [shard["NodeGroupId"] for shard in self.find_group(group_id)["NodeGroups"]]
        gone = {"NodeGroupsToRemove": ids[count:]} if ids[count:] else {}
        self.client.modify_replication_group_shard_configuration(
            ReplicationGroupId=group_id, NodeGroupCount=count, ApplyImmediately=True, **gone
        )
        self.group_available(group_id)

    def delete_group(self, group_id: str) -> None:
        self._again_while("InvalidReplicationGroupState", lambda: self.client.delete_replication_group(ReplicationGroupId=group_id))
        self.group_gone(group_id)

    @staticmethod
    def _again_while(code: str, ask: Callable[[], Any]) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                ask()
                return
            except ClientError as error:
                if code_of(error) != code or time.monotonic() > until:
                    raise

    def read_group(self, group_id: str) -> State | None:
        found = self.find_group(group_id)
        if found is None or found["Status"] == "deleting":
            return None
        shard = found["NodeGroups"][0]
        configuration = found.get("ConfigurationEndpoint")
        primary, reader = (None, None) if configuration else (shard["PrimaryEndpoint"], shard["ReaderEndpoint"])
        first = self.find_cluster(found["MemberClusters"][0])
        return self._cluster_attributes(first) | {
            "arn": found["ARN"],
            "replication_group_id": found["ReplicationGroupId"],
            "description": found["Description"],
            "automatic_failover_enabled": {"enabled": True, "enabling": True, "disabled": False, "disabling": False}[
                found["AutomaticFailover"]
            ],
            "multi_az_enabled": {"enabled": True, "disabled": False}[found["MultiAZ"].lower()],
            "num_cache_clusters": len(found["MemberClusters"]),
            "member_clusters": set(found["MemberClusters"]),
            "num_node_groups": len(found["NodeGroups"]),
            "replicas_per_node_group": len(shard["NodeGroupMembers"]) - 1,
            "zones": [member["PreferredAvailabilityZone"] for each in found["NodeGroups"] for member in each["NodeGroupMembers"]],
            "cluster_enabled": found["ClusterEnabled"],
            "cluster_mode": found["ClusterMode"],
            "configuration_endpoint_address": configuration and configuration["Address"],
            "primary_endpoint_address": primary and primary["Address"],
            "reader_endpoint_address": reader and reader["Address"],
            "port": (configuration or primary)["Port"],
            "user_group_ids": set(found["UserGroupIds"]),
            "log_delivery_configuration": found["LogDeliveryConfigurations"],
            "network_type": found["NetworkType"],
            "ip_discovery": found["IpDiscovery"],
            "snapshot_retention_limit": found["SnapshotRetentionLimit"],
            "snapshot_window": found["SnapshotWindow"],
            "kms_key_id": found.get("KmsKeyId"),
            "at_rest_encryption_enabled": first["AtRestEncryptionEnabled"],
            "transit_encryption_mode": first.get("TransitEncryptionMode"),
            "auth_token_enabled": first["AuthTokenEnabled"],
            "data_tiering_enabled": found["DataTiering"] == "enabled",
            "tags": self.tags(found["ARN"]),
        }
