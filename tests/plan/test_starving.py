"""A primary that cannot be confirmed stopped, where the operator allows to starve it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, gone, group, healthy, later, running, shard, silent, step

from cachekeep.engines.runtime import runtime
from cachekeep.model import (
    Act,
    Apply,
    Cache,
    Condemned,
    Decide,
    Detach,
    NodeView,
    Promote,
    Recovery,
    Silence,
    Starved,
    Starving,
    Stop,
    View,
    Wait,
)
from cachekeep.plan import Policy
from cachekeep.plan.lead.starve import STARVING_SECONDS
from cachekeep.plan.situation import with_nodes

STARVE = Policy(fence="starve")
LATER = later(2)


def lost(count: int = 3, **shards: Any) -> Cache:
    """``demo-001`` was condemned a moment ago, and its guard is armed."""
    cache = group(count, shards={"min_replicas": count // 2} | shards)
    condemned = replace(cache.node("demo-001"), fate=Condemned(since=MOMENT))  # type: ignore[type-var]
    return replace(cache, decided=with_nodes(cache.decided, [condemned]))


def view(cache: Cache, *, follow: bool = True, **others: Any) -> View:
    """It takes nothing from here; the others answer, and follow it or nobody."""
    away = replace(silent(cache, "demo-001", 1.0, reachable=False), digests=runtime(cache, cache.node("demo-001")).digests)  # type: ignore[arg-type]
    alone = {} if follow else {"follows": None, "link_up": None}
    names = [n.name for n in cache.decided.nodes if n.name != "demo-001"]
    seen = {n.replace("-", "_"): running(cache, n, **alone) for n in names}
    return healthy(cache, **({"demo_001": away} | seen | others))


@pytest.mark.parametrize(("nodes", "needed"), [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_a_primary_depends_on_a_majority_of_its_shard(nodes: int, needed: int) -> None:
    cache = group(nodes)
    answer = step(cache, healthy(cache), STARVE)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).min_replicas == needed
    armed = replace(cache, decided=answer.decided)
    assert step(armed, healthy(cache), STARVE) == Act(((Apply("demo-001", ("settings",)),),), "demo-001 gets changed settings")


@pytest.mark.parametrize(
    ("policy", "changes"),
    [(Policy(), {}), (STARVE, {"automatic_failover": False}), (STARVE, {"shards": {"in_sync": frozenset()}})],
    ids=["confirm", "no failover", "nobody in sync"],
)
def test_otherwise_it_depends_on_none(policy: Policy, changes: dict[str, Any]) -> None:
    cache = group(2, **changes)
    answer = step(cache, healthy(cache), policy)
    assert not isinstance(answer, Decide) or shard(answer.decided).min_replicas == 0
    armed = group(2, **(changes | {"shards": {"min_replicas": 1} | changes.get("shards", {})}))
    answer = step(armed, healthy(armed), policy)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).min_replicas == 0
    assert answer.because == "demo-001 takes writes without its replicas"


@pytest.mark.parametrize("policy", [Policy(), STARVE], ids=lambda p: p.fence)
def test_the_drivers_word_is_asked_for_first(policy: Policy) -> None:
    cache = lost()
    assert step(cache, view(cache), policy) == Act(((Stop("demo-001"),),), "demo-001 must be confirmed stopped first")


def test_without_the_operators_word_nobody_is_starved() -> None:
    cache = lost()
    assert isinstance(step(cache, view(cache), Policy(), later(1.5)), Act)


def test_replicas_leave_in_an_order_of_its_own_and_lead_when_the_time_is_over() -> None:
    cache = lost()
    answer = step(cache, view(cache), STARVE, LATER)
    assert isinstance(answer, Decide)
    assert answer.because == "demo-001 cannot be confirmed stopped: its replicas leave it, until it must refuse writes"
    assert shard(answer.decided).order == 2
    cache = replace(cache, decided=answer.decided)
    left = Act(((Detach("demo-002", 2), Detach("demo-003", 2)),), "demo-002 and demo-003 leave demo-001 (order 2)")
    assert step(cache, view(cache), STARVE, LATER) == left
    answer = step(cache, view(cache, follow=False), STARVE, LATER)
    assert isinstance(answer, Decide)
    cache = replace(cache, decided=answer.decided)
    early = later(2 + STARVING_SECONDS - 0.1)
    assert isinstance(step(cache, view(cache, follow=False), STARVE, early), Wait)
    answer = step(cache, view(cache, follow=False), STARVE, later(2 + STARVING_SECONDS))
    assert isinstance(answer, Decide)
    assert answer.because == "demo-001 has been without replicas for 5 s and takes no writes: demo-002 becomes primary"
    led = shard(answer.decided)
    assert (led.primary, led.order, led.min_replicas, led.change) == ("demo-002", 3, 0, Recovery(lost="demo-001"))
    cache = replace(cache, decided=answer.decided)
    second = running(cache, "demo-002", role="replica", follows=None, link_up=None)
    answer = step(cache, view(cache, follow=False, demo_002=second), STARVE, LATER)
    assert isinstance(answer, Act)
    assert isinstance(answer.stages[0][0], Promote), "nothing waits for demo-001 any more"


@pytest.mark.parametrize(
    ("changes", "others", "why"),
    [
        ({"min_replicas": 0}, {}, "it does not depend on its replicas"),
        ({}, {"demo_003": None}, "demo-003 may go on acknowledging what it writes"),
        ({"in_sync": frozenset()}, {}, "no in-sync replica could take over"),
    ],
)
def test_what_keeps_it_from_being_succeeded(changes: dict[str, Any], others: dict[str, Any], why: str) -> None:
    cache = lost(**changes)
    seen = {name: NodeView(process="running", incarnation=1, answer=Silence()) for name in others}
    answer = step(cache, view(cache, **seen), STARVE, LATER)
    assert isinstance(answer, Wait)
    assert answer.because == f"demo-001 cannot be confirmed stopped, and {why}: it is not succeeded"
    assert answer.refused


def test_a_guard_that_is_not_known_to_be_armed_is_none() -> None:
    cache = lost()
    seen = view(cache)
    other = replace(seen, nodes=seen.nodes | {"demo-001": replace(seen.node("demo-001"), digests={"settings": "another"})})
    answer = step(cache, other, STARVE, LATER)
    assert isinstance(answer, Wait)
    assert "it does not depend on its replicas" in answer.because


def test_replicas_that_are_gone_acknowledge_nothing() -> None:
    cache = lost(in_sync=frozenset({"demo-002"}), change=Starving())
    answer = step(cache, view(cache, follow=False, demo_003=gone()), STARVE, LATER)
    assert isinstance(answer, Decide)
    assert shard(answer.decided).change == Starving(since=LATER)


def test_one_that_is_gone_after_all_is_succeeded_at_once() -> None:
    cache = lost(change=Starving(since=MOMENT))
    answer = step(cache, view(cache, follow=False, demo_001=gone()), STARVE, LATER)
    assert isinstance(answer, Decide)
    assert answer.because == "demo-001 is gone: demo-002 has the most of what it wrote and becomes primary"


def test_it_is_stopped_when_its_host_is_back_and_then_started_as_any_other() -> None:
    cache = lost(primary="demo-002", in_sync=frozenset({"demo-003"}))
    cache = replace(cache, decided=with_nodes(cache.decided, [replace(cache.node("demo-001"), fate=Starved())]))  # type: ignore[type-var]
    answer = step(cache, healthy(cache), STARVE)
    assert answer == Act(((Stop("demo-001"),),), "demo-001 can be reached again and is stopped")
    answer = step(cache, healthy(cache, demo_001=gone()), STARVE)
    assert isinstance(answer, Decide)
    again = next(n for n in answer.decided.nodes if n.name == "demo-001")
    assert (again.incarnation, again.fate) == (2, None)


def test_one_that_is_let_live_is_not_starved_later_by_what_was_begun_now() -> None:
    """Its replicas follow it again: the next time it is condemned, the time for which they have to be away begins anew."""
    cache = lost(change=Starving(since=MOMENT))
    answer = step(cache, healthy(cache), Policy(), LATER)
    assert answer.because == "demo-001 answers again: it is not stopped"
    assert shard(answer.decided).change is None  # type: ignore[union-attr]


def test_another_process_in_its_place_is_not_starved_by_what_was_begun_with_the_first() -> None:
    cache = lost(1, change=Starving(since=MOMENT))
    answer = step(cache, view(cache, demo_001=gone()), STARVE, LATER)
    assert answer.because == "demo-001 ended and is started again; what only demo-001 held is lost"
    assert shard(answer.decided).change is None  # type: ignore[union-attr]
