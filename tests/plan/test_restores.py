"""A new cache that starts with data: they are there before its first primaries are started, and what does not load is not tried for
ever."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, NOW, gone, group, healthy, step

from cachekeep.control.execute import deadline_seconds
from cachekeep.model import (
    Act,
    Beginning,
    Cache,
    Decide,
    Done,
    Failed,
    Job,
    Missing,
    NodeView,
    Restore,
    Running,
    Start,
    Step,
    Task,
    View,
    Wait,
    Working,
)
from cachekeep.plan import Policy
from cachekeep.plan.restores import DEADLINE_SECONDS, ID, LOADS_MAX, fetch, starts_from
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import condition

RESTORE = Restore(snapshot="5e7/nightly", name="nightly", holding="abc", objects={"0001": "0001.rdb"}, size_bytes=100 << 20)


def restored(state: Any = None, *, incarnation: int = 1) -> Cache:
    """Appointed, and nothing started; ``state``: of its job, if there is one."""
    cache = group(2, restore=RESTORE)
    task = Task(kind="restore", arguments={"cache": "u1", "holding": "abc", "0001": "0001.rdb"})
    job = Job(id=ID, work=task, began_at=MOMENT, deadline_seconds=DEADLINE_SECONDS, state=state)
    nodes = tuple(replace(n, announced=False, incarnation=incarnation) for n in cache.decided.nodes)
    decided = replace(cache.decided, nodes=nodes, available_at=None, jobs=(job,) if state is not None else ())
    return replace(cache, decided=decided)


def unstarted(cache: Cache, seen: Any = None, **nodes: NodeView) -> View:
    views = {n.name: NodeView(process="absent") for n in cache.decided.nodes} | {k.replace("_", "-"): v for k, v in nodes.items()}
    return View(nodes=views, free_addresses=ADDRESSES, jobs={ID: seen} if seen is not None else {})


def started(taken: Step) -> set[str]:
    return {e.name for stage in taken.stages for e in stage if isinstance(e, Start)} if isinstance(taken, Act) else set()


def test_the_data_are_fetched_first() -> None:
    cache = restored()
    taken = step(cache, unstarted(cache))
    assert isinstance(taken, Decide)
    (job,) = taken.decided.jobs
    assert job.state == Beginning()
    assert isinstance(job.work, Task)
    assert job.work.arguments == {"cache": "u1", "holding": "abc", "0001": "0001.rdb"}


def test_who_starts_with_data_waits_for_them_and_a_replica_does_not() -> None:
    cache = restored(Running(1))
    assert started(step(cache, unstarted(cache, Working(1)))) == {"demo-002"}
    cache = restored(Done())
    assert started(step(cache, unstarted(cache, Missing()))) == {"demo-001", "demo-002"}


def test_only_a_first_primary_starts_from_a_file_and_only_until_the_cache_is_available() -> None:
    cache = restored(Done())
    first, second = cache.decided.nodes
    assert starts_from(cache, first) == "u1.0001.rdb"
    assert starts_from(cache, second) is None
    available = replace(cache, decided=replace(cache.decided, available_at=NOW))
    assert starts_from(available, first) is None


def test_copying_what_it_starts_from_has_its_time() -> None:
    usual = deadline_seconds(group(2), Start("demo-001"))
    assert deadline_seconds(restored(Done()), Start("demo-001")) == usual + 10
    unknown = replace(restored(Done()), wanted=replace(restored().wanted, restore=replace(RESTORE, size_bytes=None)))
    assert deadline_seconds(unknown, Start("demo-001")) > 3600


def test_a_primary_that_ends_starts_with_the_same_data_again_and_needs_no_proof() -> None:
    cache = restored(Done())
    taken = step(cache, unstarted(cache, Missing(), demo_001=gone(), demo_002=gone()))
    assert isinstance(taken, Decide)
    again = taken.decided.nodes[0]
    assert again.incarnation == 2
    assert taken.decided.shards[0].ended == ()
    assert starts_from(replace(cache, decided=taken.decided), again) == "u1.0001.rdb"


@pytest.mark.parametrize(
    ("cache", "view", "words"),
    [
        (restored(Failed("the vault is gone")), {}, "cannot be restored from nightly: the vault is gone"),
        (
            restored(Done(), incarnation=LOADS_MAX),
            {"demo_001": replace(gone(LOADS_MAX), problem="bad CRC"), "demo_002": gone(LOADS_MAX)},
            "cannot be restored from nightly: demo-001 does not load it (bad CRC)",
        ),
    ],
)
def test_what_cannot_be_restored_says_so_and_is_not_tried_for_ever(cache: Cache, view: dict[str, Any], words: str) -> None:
    seen = unstarted(cache, Missing(), **view)
    for _ in range(3):  # its replica is started, and waits
        taken = step(cache, seen)
        assert "demo-001" not in started(taken)
        if not isinstance(taken, Decide):
            break
        cache = replace(cache, decided=taken.decided)
    told = condition(Situation(cache, seen, NOW, MOMENT, Policy()), taken)
    assert told.status == "create-failed"
    nodes = dict.fromkeys((n.name for n in cache.decided.nodes if n.name != "demo-001"), NodeView(process="running", incarnation=9))
    waits = step(cache, replace(seen, nodes={**seen.nodes, **nodes}))
    assert isinstance(waits, Wait) or "demo-001" not in started(waits)
    said = fetch(Situation(cache, seen, NOW, MOMENT, Policy()))
    assert isinstance(said, Wait)
    assert said.refused
    assert words in said.because


def test_an_ordinary_cache_is_as_it_was() -> None:
    cache = group(2)
    assert isinstance(step(cache, healthy(cache)), Wait)
