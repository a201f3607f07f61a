"""Errands end: when what was asked for is seen, when it cannot come any more, or when it has taken too long."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, gone, group, healthy, later, shard_with, silent, step

from cachekeep.model import (
    Cache,
    Decide,
    Done,
    Errand,
    ErrandKind,
    Failed,
    Halted,
    Job,
    Move,
    Refusal,
    Resharding,
    Running,
    Step,
    View,
    Wait,
)
from cachekeep.plan.change.errands import DEADLINES_SECONDS


def taken_up(kind: ErrandKind, nodes: tuple[str, ...] = (), count: int = 2, **shard: Any) -> Cache:
    """A healthy group with an errand that has been taken up, and nothing that is on its way for it."""
    errand = Errand(serial=1, kind=kind, nodes=nodes, shard="0001")
    cache = group(count, errands=(errand,), shards=shard)
    job = Job(id=errand.id, work=errand, began_at=MOMENT, deadline_seconds=DEADLINES_SECONDS[kind], state=Running())
    return replace(cache, decided=replace(cache.decided, jobs=(job,)))


def with_node(cache: Cache, name: str, **changes: Any) -> Cache:
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in cache.decided.nodes)
    return replace(cache, decided=replace(cache.decided, nodes=nodes))


def state(answer: Step) -> Done | Failed | Running:
    assert isinstance(answer, Decide), answer
    (job,) = answer.decided.jobs
    return job.state


@pytest.mark.parametrize(
    ("cache", "because"),
    [
        (taken_up("reboot", ("demo-001", "demo-002")), "demo-001 and demo-002 have been rebooted"),
        (taken_up("reboot", ("demo-003",)), "nobody is left to reboot"),
        (taken_up("promote", ("demo-001",)), "demo-001 leads, as asked"),
        (taken_up("test-failover", ("demo-002",)), "the test failover of node group 0001 is done: demo-001 leads"),
        (taken_up("promote-stale"), "demo-001 leads shard 0001, as was asked for"),
        (taken_up("rebalance"), "the slots are dealt out anew, as asked"),
    ],
)
def test_done_when_it_is_seen(cache: Cache, because: str) -> None:
    answer = step(cache, healthy(cache))
    assert (state(answer), answer.because, answer.events) == (Done(), because, ())  # type: ignore[union-attr]
    assert not replace(cache, decided=answer.decided).errands_left  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cache", "because"),
    [
        (taken_up("promote", ("demo-003",)), "demo-003 was to lead, and is gone"),
        (taken_up("promote", ("demo-002",)), "demo-002 was to lead, and demo-001 still does"),
        (taken_up("test-failover", ("demo-001",)), "the test failover of node group 0001 has failed: demo-001 still leads"),
    ],
)
def test_what_cannot_come_any_more_has_failed_and_is_told(cache: Cache, because: str) -> None:
    answer = step(cache, healthy(cache))
    assert (state(answer), answer.because) == (Failed(because), because)
    assert [e.message for e in answer.events] == [because]  # type: ignore[union-attr]


def under_way() -> list[tuple[str, Cache, View]]:
    """Errands in the middle: nothing has to be said of them."""
    due = with_node(taken_up("reboot", ("demo-002",)), "demo-002", due="reboot", announced=False)
    stopped = with_node(taken_up("reboot", ("demo-002",)), "demo-002", fate=Halted())
    away = with_node(taken_up("reboot", ("demo-002",)), "demo-002", announced=False)
    moving = taken_up("promote", ("demo-002",), change=Move(to="demo-002"), order=2)
    preferred = taken_up("promote", ("demo-002",), count=3, preferred="demo-002")
    replaced = with_node(taken_up("test-failover", ("demo-001",)), "demo-001", due="reboot")
    tested = taken_up("test-failover", ("demo-001",), change=Move(to="demo-002"), order=2)
    lost = taken_up("promote-stale")
    other = taken_up("test-failover", ("demo-002",))
    return [
        ("due", due, healthy(due)),
        ("stopped", stopped, healthy(stopped)),
        ("not back", away, healthy(away, demo_002=silent(away, "demo-002", 1.0))),
        ("moving", moving, healthy(moving)),
        ("called off, and preferred", preferred, healthy(preferred)),
        ("called off, and due", replaced, healthy(replaced)),
        ("failing over", tested, healthy(tested)),
        ("nobody leads", lost, healthy(lost, demo_001=gone())),
        ("another is to lead, and nobody does", other, healthy(other, demo_001=silent(other, "demo-001", 1.0))),
    ]


@pytest.mark.parametrize(("cache", "view"), [case[1:] for case in under_way()], ids=[case[0] for case in under_way()])
def test_what_is_under_way_goes_on(cache: Cache, view: View) -> None:
    answer = step(cache, view)
    (job,) = answer.decided.jobs if isinstance(answer, Decide) else cache.decided.jobs
    assert job.state == Running()


@pytest.mark.parametrize("kind", DEADLINES_SECONDS)
def test_what_takes_too_long_has_failed_and_is_told(kind: ErrandKind) -> None:
    cache = taken_up(kind, ("demo-002",))
    cache = with_node(cache, "demo-002", announced=False)
    cache = replace(cache, decided=replace(cache.decided, reshard=Resharding(slots=1)))
    view = healthy(cache, demo_001=silent(cache, "demo-001", 1.0), demo_002=silent(cache, "demo-002", 1.0))
    deadline = DEADLINES_SECONDS[kind]
    assert isinstance(step(cache, view, moment=later(deadline - 1)), Wait)
    answer = step(cache, view, moment=later(deadline))
    assert isinstance(state(answer), Failed)
    assert answer.because.endswith(f"has not ended within {deadline:g} s and counts as failed; what it has changed stays")
    assert [e.message for e in answer.events] == [answer.because]  # type: ignore[union-attr]


def test_after_a_boot_it_is_counted_anew() -> None:
    cache = taken_up("promote-stale")
    view = healthy(cache, demo_001=silent(cache, "demo-001", 1.0))
    booted = replace(MOMENT, boot="another")
    answer = step(cache, view, moment=booted)
    assert isinstance(answer, Decide)
    assert answer.decided.jobs[0].began_at == booted
    over = replace(cache.decided.jobs[0], state=Done())
    cache = replace(cache, decided=replace(cache.decided, jobs=(over,)))
    assert isinstance(step(cache, view, moment=booted), Wait), "what has ended is not counted at all"


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    """Of errands that have ended those stay that are still listed: they would be done again."""
    cache = taken_up("reboot", ("demo-002",))
    (job,) = cache.decided.jobs
    ended = (replace(job, state=Done()), replace(job, id="errand-0", state=Done()))
    cache = replace(cache, decided=replace(cache.decided, jobs=ended), wanted=cache.wanted.asking("reboot", nodes=("demo-001",)))
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert [j.id for j in answer.decided.jobs] == ["errand-1", "errand-2"]


def test_each_consent_counts() -> None:
    """One for each of two shards: neither takes the other's place, nor that of what waits for a leader."""
    cache = group(2, errands=tuple(Errand(serial=i + 1, kind="promote-stale", shard=f"{i:04}") for i in range(3)))
    cache = replace(
        cache,
        decided=replace(
            cache.decided, refusals=tuple(Refusal(shard=f"{i:04}", lost="", best="", doubt="unheard") for i in range(3))
        ),
    )
    cache = replace(cache, decided=replace(cache.decided, shards=(shard_with(cache.decided.shards[0]),)))
    view = healthy(cache, demo_001=silent(cache, "demo-001", 1.0))
    taken: list[str] = []
    while isinstance(answer := step(cache, view), Decide):
        taken += [j.id for j in answer.decided.jobs if cache.decided.job(j.id) is None]
        cache = replace(cache, decided=answer.decided)
    assert taken == ["errand-1", "errand-2", "errand-3"]
    assert cache.decided.shards[0].accept_stale
