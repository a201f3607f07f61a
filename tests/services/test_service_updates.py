"""Newer builds: noticed, told of, applied and stopped."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import CATALOGUE, Rig, refused

from cachekeep.engines.catalogue import Build, Catalogue
from cachekeep.model import NodeCondition
from cachekeep.services.core.inside import asker
from cachekeep.services.elasticache.patcher import Patcher

OLD, NEW = "valkey-8.0.1+tls", "valkey-8.0.13+tls"
NEWER = replace(
    CATALOGUE, builds=(*CATALOGUE.builds, Build(engine="valkey", version="8.0.13", server="/opt/valkey8/valkey-server", tls=True))
)
UPDATE = "valkey-8-0-13-for-8-0"
SUNDAY = "sun:05:00-sun:06:00"


class Patched:
    """A group of three nodes, and a worker that ticks by hand. ``runs`` is what the keeper sees of their builds."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.patcher = Patcher(rig.store, rig.clock, rig.services, asker(rig.services.dispatch, rig.settings, rig.clock))
        self.rig.group("demo", NumCacheClusters=3, PreferredMaintenanceWindow=SUNDAY)
        self.runs(OLD, OLD, OLD)

    def runs(self, *programs: str, name: str = "demo") -> None:
        nodes = self.rig.stored(name).decided.nodes
        told = tuple(
            NodeCondition(name=node.name, status="available", program=program)
            for node, program in zip(nodes, programs, strict=True)
        )
        self.rig.keep(nodes=told)

    def tick(self, catalogue: Catalogue = NEWER) -> None:
        self.rig.services.use(catalogue)
        self.rig.run(self.patcher.tick())

    def at(self, weekday: int, hour: int) -> None:
        """Move the clock on to that hour of that day (Monday is 0)."""
        now = self.rig.clock.now()
        ahead = dt.timedelta(days=(weekday - now.weekday()) % 7, hours=hour - now.hour)
        self.rig.clock.passed += ahead if ahead > dt.timedelta() else ahead + dt.timedelta(days=7)

    def actions(self, **more: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.rig.cache.describe_update_actions(**more)["UpdateActions"]
        return found

    def errands(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(errand.kind, errand.nodes) for errand in self.rig.stored("demo").wanted.errands]


@pytest.fixture
def patched(rig: Rig) -> Patched:
    return Patched(rig)


def test_what_is_newer_becomes_an_update_with_its_severity(patched: Patched) -> None:
    patched.tick(CATALOGUE)
    assert patched.rig.cache.describe_service_updates()["ServiceUpdates"] == []
    patched.at(2, 12)
    patched.tick()
    (update,) = patched.rig.cache.describe_service_updates()["ServiceUpdates"]
    assert (update["ServiceUpdateName"], update["Engine"], update["EngineVersion"]) == (UPDATE, "valkey", "8.0")
    assert (update["ServiceUpdateSeverity"], update["ServiceUpdateStatus"]) == ("critical", "available")
    assert "CVE-2025-49844" in update["ServiceUpdateDescription"]
    by = update["ServiceUpdateRecommendedApplyByDate"] - update["ServiceUpdateReleaseDate"]
    assert by == dt.timedelta(days=14)
    (action,) = patched.actions()
    assert (action["ReplicationGroupId"], action["UpdateActionStatus"], action["NodesUpdated"]) == ("demo", "not-applied", "0/3")
    assert (action["SlaMet"], action["ServiceUpdateSeverity"]) == ("n/a", "critical")
    missing = refused(patched.rig.cache.describe_service_updates, ServiceUpdateName="other")
    assert missing.code == "ServiceUpdateNotFoundFault"
    patched.tick(CATALOGUE)
    (update,) = patched.rig.cache.describe_service_updates()["ServiceUpdates"]
    assert update["ServiceUpdateStatus"] == "cancelled", "its build is gone"


def test_an_update_is_applied_to_nodes_that_lack_it_and_told_step_by_step(patched: Patched) -> None:
    patched.at(2, 12)
    patched.tick()
    patched.runs(OLD, OLD, NEW)
    answer = patched.rig.cache.batch_apply_update_action(
        ServiceUpdateName=UPDATE, ReplicationGroupIds=["demo", "nobody"], CacheClusterIds=["none"]
    )
    (processed,) = answer["ProcessedUpdateActions"]
    assert processed == {"ReplicationGroupId": "demo", "ServiceUpdateName": UPDATE, "UpdateActionStatus": "waiting-to-start"}
    assert [row.get("ReplicationGroupId", row.get("CacheClusterId")) for row in answer["UnprocessedUpdateActions"]] == [
        "nobody",
        "none",
    ]
    assert patched.errands() == [("patch", ("demo-001", "demo-002"))]
    again = patched.rig.cache.batch_apply_update_action(ServiceUpdateName=UPDATE, ReplicationGroupIds=["demo"])
    assert again["ProcessedUpdateActions"] == []
    assert "already" in again["UnprocessedUpdateActions"][0]["ErrorMessage"]
    (action,) = patched.actions(ShowNodeLevelUpdateStatus=True)
    assert (action["UpdateActionStatus"], action["NodesUpdated"]) == ("in-progress", "1/3"), "before its keeper has said anything"
    members = action["NodeGroupUpdateStatus"][0]["NodeGroupMemberUpdateStatus"]
    assert {member["NodeUpdateStatus"] for member in members} == {"waiting-to-start"}
    assert {member["NodeUpdateInitiatedBy"] for member in members} == {"customer"}
    patched.runs(NEW, NEW, NEW)
    patched.tick()
    (action,) = patched.actions()
    assert (action["UpdateActionStatus"], action["NodesUpdated"], action["SlaMet"]) == ("complete", "3/3", "yes")
    assert patched.actions(UpdateActionStatus=["not-applied"]) == []
    assert patched.actions(UpdateActionStatus=["complete"], ReplicationGroupIds=["demo"], Engine="valkey") != []
    assert patched.actions(Engine="redis") == []
    assert patched.actions(CacheClusterIds=["demo"]) == []


def test_an_update_that_is_stopped_stays_where_it_is(patched: Patched) -> None:
    patched.at(2, 12)
    patched.tick()
    stop = patched.rig.cache.batch_stop_update_action
    assert stop(ServiceUpdateName=UPDATE, ReplicationGroupIds=["demo"])["ProcessedUpdateActions"] == []
    patched.rig.cache.batch_apply_update_action(ServiceUpdateName=UPDATE, ReplicationGroupIds=["demo"])
    (processed,) = stop(ServiceUpdateName=UPDATE, ReplicationGroupIds=["demo"])["ProcessedUpdateActions"]
    assert processed["UpdateActionStatus"] == "stopping"
    assert [kind for kind, _ in patched.errands()] == ["patch", "stop-patch"]
    patched.runs(OLD, OLD, OLD)
    patched.tick()
    (action,) = patched.actions()
    assert (action["UpdateActionStatus"], action["NodesUpdated"]) in {("stopped", "0/3"), ("stopping", "0/3")}
    patched.at(6, 5)
    patched.tick()
    assert [kind for kind, _ in patched.errands()] == ["patch", "stop-patch"], "what was stopped is not begun again by itself"


def test_it_is_applied_in_the_window_by_itself_and_never_outside_of_it(patched: Patched) -> None:
    patched.at(6, 4)
    patched.tick()
    assert patched.errands() == []
    patched.at(6, 5)
    patched.tick()
    assert patched.errands() == [("patch", ("demo-001", "demo-002", "demo-003"))]
    (action,) = patched.actions(ShowNodeLevelUpdateStatus=True)
    members = action["NodeGroupUpdateStatus"][0]["NodeGroupMemberUpdateStatus"]
    assert {member["NodeUpdateInitiatedBy"] for member in members} == {"system"}


@pytest.mark.parametrize("why", ["off", "no replica"])
def test_what_may_not_be_touched_is_left_alone(rig: Rig, why: str) -> None:
    patched = Patched(rig)
    if why == "off":
        rig.cache.modify_replication_group(ReplicationGroupId="demo", AutoMinorVersionUpgrade=False, ApplyImmediately=True)
    if why == "no replica":
        rig.cache.decrease_replica_count(ReplicationGroupId="demo", NewReplicaCount=0, ApplyImmediately=True)
        rig.keep()
    runs = [OLD] * len(rig.stored("demo").decided.nodes)
    patched.runs(*runs)
    patched.at(6, 5)
    before = patched.errands()
    patched.tick()
    assert patched.errands() == before
    assert patched.actions()[0]["UpdateActionStatus"] == "not-applied", "it is told all the same"


def test_one_cache_at_a_time(patched: Patched) -> None:
    patched.rig.group("other", NumCacheClusters=2, PreferredMaintenanceWindow=SUNDAY)
    nodes = {
        name: tuple(NodeCondition(name=n.name, status="available", program=OLD) for n in patched.rig.stored(name).decided.nodes)
        for name in ("demo", "other")
    }
    patched.rig.keep(nodes=(*nodes["demo"], *nodes["other"]))
    patched.at(6, 5)
    patched.tick()
    patched.tick()
    begun = [name for name in ("demo", "other") if patched.rig.stored(name).wanted.errands]
    assert begun == ["demo"]


def test_what_nobody_knows_is_not_called_old(rig: Rig) -> None:
    patched = Patched(rig)
    patched.runs("", "", "")
    patched.at(2, 12)
    patched.tick()
    assert rig.cache.describe_service_updates()["ServiceUpdates"] == []


def test_a_newer_build_ends_the_update_before_it(patched: Patched) -> None:
    patched.at(2, 12)
    patched.tick()
    builds = (*NEWER.builds, Build(engine="valkey", version="8.0.14", server="/opt/valkey8b/valkey-server", tls=True))
    patched.tick(replace(NEWER, builds=builds))
    rows = patched.rig.cache.describe_service_updates()["ServiceUpdates"]
    assert {row["ServiceUpdateName"]: row["ServiceUpdateStatus"] for row in rows} == {
        UPDATE: "expired",
        "valkey-8-0-14-for-8-0": "available",
    }
    assert patched.rig.cache.describe_service_updates(ServiceUpdateStatus=["available"])["ServiceUpdates"][0]["Engine"] == "valkey"
    late = patched.rig.cache.batch_apply_update_action(ServiceUpdateName=UPDATE, ReplicationGroupIds=["demo"])
    assert late["ProcessedUpdateActions"] == []
    none_named = refused(patched.rig.cache.batch_apply_update_action, ServiceUpdateName=UPDATE)
    assert none_named.code == "InvalidParameterValue"
