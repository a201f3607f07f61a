"""What may be asked of a group of which one node does not work, and of one that waits for its user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import Rig, refused

from cachekeep.model import Condition, Confirmed, NodeCondition

Ask = Callable[[Any], Any]

TEST: Ask = lambda c: c.test_failover(ReplicationGroupId="demo", NodeGroupId="0001")  # noqa: E731
REBOOT: Ask = lambda c: c.reboot_cache_cluster(CacheClusterId="demo-002", CacheNodeIdsToReboot=["0001"])  # noqa: E731
MORE: Ask = lambda c: c.increase_replica_count(ReplicationGroupId="demo", NewReplicaCount=3, ApplyImmediately=True)  # noqa: E731
FEWER: Ask = lambda c: c.decrease_replica_count(  # noqa: E731
    ReplicationGroupId="demo", ReplicasToRemove=["demo-002"], ApplyImmediately=True
)
REMOVE: Ask = lambda c: c.delete_cache_cluster(CacheClusterId="demo-002")  # noqa: E731
ADD: Ask = lambda c: c.create_cache_cluster(CacheClusterId="extra", ReplicationGroupId="demo")  # noqa: E731
MODIFY: Ask = lambda c: c.modify_replication_group(  # noqa: E731
    ReplicationGroupId="demo", CacheNodeType="cache.t3.small", ApplyImmediately=True
)
DELETE: Ask = lambda c: c.delete_replication_group(ReplicationGroupId="demo")  # noqa: E731
RETAIN: Ask = lambda c: c.delete_replication_group(ReplicationGroupId="demo", RetainPrimaryCluster=True)  # noqa: E731

ALL = {
    "TestFailover": TEST,
    "RebootCacheCluster": REBOOT,
    "IncreaseReplicaCount": MORE,
    "DecreaseReplicaCount": FEWER,
    "DeleteCacheCluster": REMOVE,
    "CreateCacheCluster": ADD,
    "ModifyReplicationGroup": MODIFY,
    "DeleteReplicationGroup": DELETE,
    "DeleteReplicationGroup, RetainPrimaryCluster": RETAIN,
}
"""Each is asked of the very node that does not work, where it names one."""
WAYS_OUT = set(ALL) - {"TestFailover", "DeleteReplicationGroup, RetainPrimaryCluster"}


def _nodes(second: Any) -> tuple[NodeCondition, ...]:
    return tuple(
        NodeCondition(name=f"demo-00{i}", status=second if i == 2 else "available", problem="no answer" if i == 2 else None)
        for i in (1, 2, 3)
    )


@pytest.fixture
def sick(rig: Rig) -> Rig:
    """It serves; demo-002 does not answer, and never will."""
    rig.group(NumCacheClusters=3, AutomaticFailoverEnabled=True)
    rig.keep(nodes=_nodes("modifying"), refused=True, because="demo-002 does not answer")
    return rig


@pytest.fixture
def stuck(rig: Rig) -> Rig:
    """Something was asked for that cannot be done on demo-002."""
    rig.group(NumCacheClusters=3, AutomaticFailoverEnabled=True)
    rig.keep(status="modifying", settled=False, nodes=_nodes("creating"), refused=True, because="demo-002 cannot be started")
    return rig


@pytest.fixture
def busy(rig: Rig) -> Rig:
    """Something that was asked for is being done."""
    rig.group(NumCacheClusters=3, AutomaticFailoverEnabled=True)
    rig.keep(status="modifying", settled=False, nodes=_nodes("creating"), because="demo-002 has no process yet")
    return rig


@pytest.mark.parametrize("operation", ALL)
def test_a_group_that_serves_with_a_sick_node_is_available(sick: Rig, operation: str) -> None:
    assert sick.show()["Status"] == "available"
    ALL[operation](sick.cache)


@pytest.mark.parametrize("operation", ALL)
def test_a_group_that_waits_for_its_user_hears_him(stuck: Rig, operation: str) -> None:
    assert stuck.show()["Status"] == "modifying"
    if operation in WAYS_OUT:
        ALL[operation](stuck.cache)
    else:
        assert "not in available state" in refused(lambda: ALL[operation](stuck.cache)).message


@pytest.mark.parametrize("operation", ALL)
def test_a_group_that_is_being_changed_is_left_alone(busy: Rig, operation: str) -> None:
    if operation == "DeleteReplicationGroup":
        ALL[operation](busy.cache)
    else:
        assert "not in available state" in refused(lambda: ALL[operation](busy.cache)).message


@pytest.mark.parametrize("operation", sorted(WAYS_OUT - {"DeleteReplicationGroup"}))
def test_the_word_of_before_the_last_change_counts_no_more(stuck: Rig, operation: str) -> None:
    """It may be what was waited for."""
    stuck.cache.modify_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="n", ApplyImmediately=True)
    assert "not in available state" in refused(lambda: ALL[operation](stuck.cache)).message


def test_a_group_that_cannot_be_deleted_is_not_changed_either(stuck: Rig) -> None:
    DELETE(stuck.cache)
    group = stuck.stored("demo")
    lease = next(iter(stuck.keeper._leases.values()))
    told = {"status": "deleting", "settled": False, "refused": True, "because": "demo-002 cannot be erased"}
    stuck.run(stuck.keeper.settle(group, lease, **told))
    for operation in WAYS_OUT:
        assert "not in available state" in refused(lambda ask=ALL[operation]: ask(stuck.cache)).message


def test_no_failover_is_tested_when_nobody_could_take_over(sick: Rig) -> None:
    group = sick.stored("demo")
    lead = replace(group.decided.shards[0], confirmed=Confirmed())
    sick.run(sick.keeper.save(replace(group, decided=replace(group.decided, shards=(lead,)))))
    condition = Condition(status="available", because="all is well", settled=True, version=sick.stored("demo").version)
    sick.run(sick.store.publish(group.uid, condition, sick.keeper._leases[group.uid]))
    error = refused(lambda: TEST(sick.cache))
    assert error.code == "TestFailoverNotAvailableFault"
    assert error.status == 400
