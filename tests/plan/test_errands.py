"""Errands end: when what was asked for is seen, when it cannot come any more, or when it has taken too long."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, NOW, decided, gone, group, healthy, later, memcached, shard_with, silent, step

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
    NodeView,
    Refusal,
    Resharding,
    Running,
    Step,
    View,
    Wait,
)
from cachekeep.plan import Policy
from cachekeep.plan.change.errands import DEADLINES_SECONDS, begin
from cachekeep.plan.change.rollout import restart
from cachekeep.plan.situation import Situation


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
        (taken_up("patch", ("demo-002",)), "demo-002 has been restarted into the newer build"),
        (taken_up("stop-patch"), "nobody else is restarted into the newer build"),
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


@pytest.mark.parametrize("kind", [kind for kind in DEADLINES_SECONDS if kind != "stop-patch"])  # which is over at once
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


def test_a_patch_restarts_nodes_one_at_a_time_and_the_primary_last() -> None:
    errand = Errand(serial=1, kind="patch", nodes=("demo-001", "demo-002", "demo-003"))
    cache = group(3, errands=(errand,))
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert answer.because == "demo-001, demo-002 and demo-003 restart into the newer build, one at a time"
    assert [n.due for n in answer.decided.nodes] == ["upgrade"] * 3
    cache = replace(cache, decided=answer.decided)
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert [n.name for n in answer.decided.nodes if n.condemned] == ["demo-002"]


def test_a_stopped_patch_leaves_those_that_wait_and_lets_go_on_who_has_begun() -> None:
    cache = taken_up("patch", ("demo-001", "demo-002", "demo-003"), count=3)
    stop = Errand(serial=2, kind="stop-patch")
    cache = replace(cache, wanted=replace(cache.wanted, errands=(*cache.wanted.errands, stop)))
    for name in ("demo-001", "demo-003"):
        cache = with_node(cache, name, due="upgrade")
    cache = with_node(cache, "demo-002", due="upgrade", fate=Halted())
    answer = begin(Situation(cache, healthy(cache), NOW, MOMENT, Policy()))
    assert isinstance(answer, Decide)
    assert answer.because == "demo-001 and demo-003 keep the older build, as asked"
    assert [n.due for n in answer.decided.nodes if n.name != "demo-002"] == ["", ""]


def test_a_stopped_patch_leaves_alone_who_is_due_for_another_version() -> None:
    cache = group(2, errands=(Errand(serial=1, kind="stop-patch"),))
    cache = with_node(replace(cache, wanted=replace(cache.wanted, version="9.0")), "demo-002", due="upgrade")
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Decide)
    assert "demo-002" not in answer.because or "keeps" not in answer.because


def test_memcached_is_patched_node_by_node() -> None:
    """Each node that restarts is empty: the others keep their shares until it is back."""
    cache = decided(memcached(3), View(free_addresses=ADDRESSES))
    nodes = tuple(replace(n, announced=True, due="upgrade") for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes, available_at=NOW))
    view = View(nodes={n.name: NodeView(process="running", incarnation=1) for n in nodes})
    first = restart(Situation(cache, view, NOW, MOMENT, Policy()))
    assert isinstance(first, Decide)
    assert [n.name for n in first.decided.nodes if n.condemned] == ["mc.0001"]
    back = [replace(n, fate=None, due="", incarnation=2, announced=False) if n.condemned else n for n in first.decided.nodes]
    cache = replace(cache, decided=replace(first.decided, nodes=tuple(back)))
    waits = restart(Situation(cache, view, NOW, MOMENT, Policy()))
    assert isinstance(waits, Wait)
    assert waits.because == "mc.0002 and mc.0003 restart when mc.0001 is back"
    cache = with_node(cache, "mc.0001", announced=True)
    second = restart(Situation(cache, view, NOW, MOMENT, Policy()))
    assert isinstance(second, Decide)
    assert [n.name for n in second.decided.nodes if n.condemned] == ["mc.0002"]
    asked = replace(cache, decided=replace(cache.decided, nodes=tuple(replace(n, due="reboot") for n in nodes)))
    at_once = restart(Situation(asked, view, NOW, MOMENT, Policy()))
    assert isinstance(at_once, Decide)
    assert all(n.condemned for n in at_once.decided.nodes)
