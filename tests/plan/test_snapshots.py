"""Snapshots: which nodes they are read from, what they wait for, and what their end leaves."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, gone, group, healthy, later, running, step

from cachekeep.model import (
    Act,
    Begin,
    Beginning,
    Broken,
    Cache,
    Decide,
    Done,
    Excuse,
    Failed,
    Job,
    Limits,
    LimitsSeen,
    Missing,
    Move,
    Resting,
    Running,
    SnapshotEnd,
    Task,
    View,
    Wait,
    Worked,
    Working,
)
from cachekeep.model.job import JobState
from cachekeep.plan.jobs import ATTEMPTS_MAX, FIRST_REST_SECONDS
from cachekeep.plan.situation import Policy, Situation
from cachekeep.plan.snapshots import DEADLINE_SECONDS, aim
from cachekeep.plan.status import condition

UID = "5e7/nightly"
GIB = 1 << 30


def asked(cache: Cache, node: str = "") -> Cache:
    return replace(cache, wanted=cache.wanted.asking("snapshot", nodes=(node,) if node else (), snapshot=UID))


def taking(cache: Cache, state: JobState, node: str = "demo-002") -> Cache:
    """With a snapshot on its way, as it was begun."""
    task = Task(kind="snapshot", arguments={"cache": "u1", "snapshot": UID, "node": "", "read:0001": node})
    job = Job(id="errand-1", work=task, began_at=MOMENT, deadline_seconds=DEADLINE_SECONDS, state=state)
    cache = asked(cache)
    return replace(cache, decided=replace(cache.decided, jobs=(job,)))


def memory(cache: Cache, name: str, *, resident: int | None, held: int | None) -> Any:
    limits = LimitsSeen(held=Limits(memory_bytes=held), most=Limits(), resident_bytes=resident)
    return running(cache, name, limits=limits)


def source(cache: Cache, view: View) -> str:
    """The node that a snapshot is to be read from, or why it waits."""
    taken = step(cache, view)
    assert isinstance(taken, Decide), taken
    (job,) = taken.decided.jobs
    assert isinstance(job.work, Task)
    return job.state.problem if isinstance(job.state, Resting) else job.work.arguments["read:0001"]


@pytest.mark.parametrize(("node", "read"), [("", "demo-002"), ("demo-003", "demo-003"), ("demo-001", "demo-001")])
def test_it_is_read_from_a_replica_in_sync_or_from_who_is_named(node: str, read: str) -> None:
    cache = asked(group(3), node)
    assert source(cache, healthy(cache)) == read


def test_who_is_not_in_sync_or_does_not_answer_is_not_read() -> None:
    cache = asked(group(3, shards={"in_sync": frozenset({"demo-003"})}), "demo-002")
    assert source(cache, healthy(cache)) == "demo-003"
    paused = running(cache, "demo-003", answer=Excuse("paused"))
    assert source(cache, healthy(cache, demo_003=paused)) == "demo-001"


def test_a_single_node_is_read_itself() -> None:
    cache = asked(group(1))
    assert source(cache, healthy(cache)) == "demo-001"


def test_nobody_forks_without_room() -> None:
    """By the limits of its own process: a replica that lacks room is passed over, and if all do it is waited for."""
    cache = asked(group(2))
    little = {name: memory(cache, name, resident=3 * GIB, held=5 * GIB) for name in ("demo-001", "demo-002")}
    assert source(cache, healthy(cache, demo_002=little["demo-002"])) == "demo-001"
    why = source(cache, healthy(cache, demo_001=little["demo-001"], demo_002=little["demo-002"]))
    assert why == (
        "demo-001 keeps 3072 MiB in memory and may use 5120 MiB: a fork may need as much again, and could end it. "
        "Nothing is read until there is room"
    )
    for resident, held in ((2 * GIB, 4 * GIB), (None, GIB), (3 * GIB, None)):  # just enough; nobody knows
        assert source(cache, healthy(cache, demo_002=memory(cache, "demo-002", resident=resident, held=held))) == "demo-002"


def test_what_has_no_room_is_waited_for_aloud_and_goes_on_when_there_is() -> None:
    cache = taking(group(1), Resting(1, later(-FIRST_REST_SECONDS), "no room"))
    view = replace(healthy(cache, demo_001=memory(cache, "demo-001", resident=3 * GIB, held=5 * GIB)), jobs={"errand-1": Missing()})
    waits = step(cache, view)
    assert isinstance(waits, Wait)
    assert waits.refused
    assert "Nothing is read until there is room" in waits.because
    goes = step(cache, replace(healthy(cache), jobs={"errand-1": Missing()}))
    assert isinstance(goes, Decide)
    assert goes.decided.jobs[0].state == Beginning(2)


def test_the_next_attempt_reads_from_who_is_there_then() -> None:
    """The one that was read is gone; the attempt before has failed."""
    cache = taking(group(3), Resting(1, later(-FIRST_REST_SECONDS), "the connection broke"))
    shard = replace(cache.decided.shards[0], confirmed=replace(cache.decided.shards[0].confirmed, nodes=frozenset({"demo-003"})))
    cache = replace(cache, decided=replace(cache.decided, shards=(shard,)))
    taken = step(cache, replace(healthy(cache), jobs={"errand-1": Missing()}))
    assert isinstance(taken, Decide)
    (job,) = taken.decided.jobs
    assert isinstance(job.work, Task)
    assert job.work.arguments == {"cache": "u1", "snapshot": UID, "node": "", "again": "yes", "read:0001": "demo-003"}


def test_a_failover_comes_first() -> None:
    cache = taking(group(3), Running(1))
    view = replace(healthy(cache, demo_001=gone()), jobs={"errand-1": Working(1)})
    taken = step(cache, view)
    assert isinstance(taken, Decide)
    assert taken.decided.shards[0].primary in ("demo-002", "demo-003")
    assert taken.decided.jobs == cache.decided.jobs


def test_none_begins_in_the_middle_of_a_move() -> None:
    cache = group(2)
    moving = replace(cache.decided.shards[0], change=Move(to="demo-002"))
    cache = taking(replace(cache, decided=replace(cache.decided, shards=(moving,))), Resting(1, later(-60.0), "x"))
    situation = Situation(cache, healthy(cache), NOW, MOMENT, Policy())
    assert aim(situation, Task(kind="snapshot", arguments={"node": ""})) == "who leads shard 0001 is about to change"


def test_what_is_taken_up_is_begun_and_ends_with_what_it_leaves() -> None:
    cache = taking(group(2), Beginning(1))
    begun = step(cache, replace(healthy(cache), jobs={"errand-1": Missing()}))
    assert begun == Act(((Begin("errand-1", 1),),), f"snapshot errand-1 begins (attempt 1 of {ATTEMPTS_MAX})")
    record = SnapshotEnd(name=UID, at=NOW)
    done = step(taking(group(2), Running(1)), replace(healthy(cache), jobs={"errand-1": Worked(1, (record,))}))
    assert isinstance(done, Decide)
    assert done.decided.jobs[0].state == Done()
    assert done.records == (record,)
    assert [e.message for e in done.events] == [
        "Snapshot succeeded for snapshot with ID 'nightly' of replication group with ID 'demo'"
    ]


def test_what_has_failed_leaves_its_reason() -> None:
    cache = taking(group(2), Running(ATTEMPTS_MAX))
    failed = step(cache, replace(healthy(cache), jobs={"errand-1": Broken(ATTEMPTS_MAX, "the vault is full")}))
    assert isinstance(failed, Decide)
    assert failed.decided.jobs[0].state == Failed("the vault is full")
    assert failed.records == (SnapshotEnd(name=UID, at=NOW, problem="the vault is full"),)
    assert [e.message for e in failed.events] == [
        "Snapshot failed for snapshot with ID 'nightly' of replication group with ID 'demo': the vault is full"
    ]


def test_what_has_ended_is_not_taken_up_again_though_another_ends_after_it() -> None:
    """Its errand may still be listed: whoever asks for another drops it, not its end."""
    cache = taking(group(2), Done())
    second = cache.wanted.asking("snapshot", snapshot="77/other")
    cache = replace(cache, wanted=second)
    taken = step(cache, replace(healthy(cache), jobs={"errand-1": Missing()}))
    assert isinstance(taken, Decide)
    assert [j.id for j in taken.decided.jobs] == ["errand-1", "errand-2"]


@pytest.mark.parametrize(
    ("state", "status", "nodes"),
    [
        (Running(1), "snapshotting", ["available", "snapshotting"]),
        (Resting(1, MOMENT, "x"), "snapshotting", ["available", "snapshotting"]),
        (Done(), "available", ["available", "available"]),
        (Failed("x"), "available", ["available", "available"]),
    ],
)
def test_cache_and_node_are_snapshotting(state: JobState, status: str, nodes: list[str]) -> None:
    cache = taking(group(2), state)
    view = replace(healthy(cache), jobs={"errand-1": Working(1)})
    told = condition(Situation(cache, view, NOW, MOMENT, Policy()), step(cache, view))
    assert told.status == status
    assert [n.status for n in told.nodes] == nodes
