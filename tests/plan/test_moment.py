"""Durations that outlive a process: from a moment to a moment of the same boot, or counted anew. The wall clock has no part in
them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from tests.plan import test_cluster_keeping as keeping
from tests.plan import test_cluster_plan as clusters
from tests.plan import test_starving as starving
from tests.plan import test_switching as switching
from tests.plan.builders import MOMENT, NOW, gone, group, healthy, later, step

from cachekeep.clock import SystemClock
from cachekeep.model import (
    UNKNOWN,
    Cache,
    Condemned,
    Decide,
    Election,
    Moment,
    Predecessor,
    Resharded,
    Spoilt,
    Starving,
    View,
    elapsed,
)
from cachekeep.plan import Policy
from cachekeep.plan.change.switch import REST_SECONDS, RETRY_SECONDS
from cachekeep.plan.lead.elect import ELECTION_SECONDS
from cachekeep.plan.lead.starve import STARVING_SECONDS
from cachekeep.plan.nodes.cluster import SENDING_ON_SECONDS
from cachekeep.plan.situation import with_nodes

ELSEWHERE = Moment("another boot, or another host", 1e9)


def test_moments_of_one_boot_can_be_compared() -> None:
    assert elapsed(MOMENT, later(2.5)) == 2.5
    assert elapsed(MOMENT, MOMENT) == 0.0


def test_those_of_another_boot_another_host_or_no_clock_at_all_cannot() -> None:
    assert elapsed(ELSEWHERE, MOMENT) is None
    assert elapsed(None, MOMENT) is None
    assert elapsed(UNKNOWN, MOMENT) is None
    assert elapsed(UNKNOWN, UNKNOWN) is None, "two that are not known are not therefore the same"


def test_a_decision_of_another_process_on_this_host_can_be_compared() -> None:
    stored = msgspec.json.decode(msgspec.json.encode(SystemClock().moment()), type=Moment)
    now = SystemClock().moment()
    assert 0.0 <= (elapsed(stored, now) or 0.0) < 60.0
    assert stored.boot == now.boot


# -- whatever takes its time: (cache, view, policy), begun at a moment, and for how long it goes on


def election(begun: Moment) -> tuple[Cache, View, Policy]:
    cache, view = clusters.settled(3)
    cache = clusters.shard(cache, change=Election(to=clusters.TWO, lost=clusters.ONE, since=begun), order=2)
    return cache, clusters.seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2}), Policy()


def starved(begun: Moment) -> tuple[Cache, View, Policy]:
    cache = starving.lost(change=Starving(since=begun))
    return cache, starving.view(cache, follow=False), starving.STARVE


def confirmed(begun: Moment) -> tuple[Cache, View, Policy]:
    cache = starving.lost()
    cache = replace(cache, decided=with_nodes(cache.decided, [replace(cache.decided.nodes[0], fate=Condemned(since=begun))]))
    return cache, starving.view(cache), starving.STARVE


def resting(begun: Moment) -> tuple[Cache, View, Policy]:
    cache = switching.fed()
    one, two, three = cache.decided.successors
    spoilt = (one, replace(two, fate=Spoilt(since=begun)), three)
    known = replace(cache.decided.preparing.confirmed, nodes=frozenset({one.name, three.name}))
    cache = switching.preparing(cache, successors=spoilt, confirmed=known)
    return cache, switching.seen(cache, t2=switching.successor(cache, switching.T2, refused=1)), Policy()


def retried(begun: Moment) -> tuple[Cache, View, Policy]:
    cache = switching.preparing(switching.fed(), tried_at=begun)
    return cache, switching.seen(cache), Policy()


def sending_on(begun: Moment) -> tuple[Cache, View, Policy]:
    cache, view = clusters.settled(2)
    cache = keeping.with_node(cache, clusters.TWO, due="reboot")
    cache = clusters.shard(cache, predecessor=Predecessor(name=clusters.TWO, since=begun))
    return cache, view, Policy()


CASES: dict[str, tuple[Any, float]] = {
    "sending clients on before a restart": (sending_on, SENDING_ON_SECONDS),
    "an election": (election, ELECTION_SECONDS),
    "starving": (starved, STARVING_SECONDS),
    "confirming that it has stopped": (confirmed, Policy().confirm_seconds),
    "the rest of a spoilt successor": (resting, REST_SECONDS),
    "the pause before the next hand-over": (retried, RETRY_SECONDS),
}
each = pytest.mark.parametrize(("case", "seconds"), CASES.values(), ids=CASES)


@each
@pytest.mark.parametrize("set_by", [-3600.0, -20.0, 20.0, 3600.0])
def test_a_wall_clock_that_is_set_makes_it_neither_longer_nor_shorter(case: Any, seconds: float, set_by: float) -> None:
    now = NOW + dt.timedelta(seconds=set_by)
    early, over = later(seconds - 0.1), later(seconds)
    cache, view, policy = case(MOMENT)
    assert step(cache, view, policy, early, now=now) == step(cache, view, policy, early)
    assert step(cache, view, policy, over, now=now) == step(cache, view, policy, over)
    assert step(cache, view, policy, early) != step(cache, view, policy, over), "nothing takes its time here"


@each
@pytest.mark.parametrize("begun", [ELSEWHERE, UNKNOWN], ids=["elsewhere", "unknown"])
def test_what_another_clock_has_begun_is_counted_anew_and_that_is_saved(case: Any, seconds: float, begun: Moment) -> None:
    cache, view, policy = case(begun)
    answer = step(cache, view, policy, MOMENT)
    assert isinstance(answer, Decide)
    assert answer.because == "the host was booted anew, or is another: what takes its time is counted anew, from now on"
    anew, *_ = case(MOMENT)
    assert answer.decided == anew.decided
    again = replace(cache, decided=answer.decided)
    assert step(again, view, policy, later(seconds - 0.1)) == step(anew, view, policy, later(seconds - 0.1))
    assert step(again, view, policy, later(seconds)) == step(anew, view, policy, later(seconds))


def test_slots_that_have_moved_away_linger_as_long_again() -> None:
    cache, view = clusters.settled(2)
    cache = replace(cache, decided=replace(cache.decided, reshard=Resharded(since=ELSEWHERE)))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.decided == replace(cache.decided, reshard=Resharded(since=MOMENT))


def test_where_nothing_takes_its_time_nothing_is_counted() -> None:
    cache = group()
    assert not isinstance(step(cache, healthy(cache), moment=ELSEWHERE), Decide)


def test_a_new_cluster_is_waited_for_by_no_wall_clock() -> None:
    cache, view = clusters.settled(2)
    nodes = tuple(replace(n, announced=False) for n in cache.decided.nodes)
    cache = replace(cache, decided=replace(cache.decided, available_at=None, appointed_at=later(-0.5), nodes=nodes))
    view = clusters.seen(view, demo_0001_001=clusters.cluster(view, clusters.ONE, ok=False))
    answer = step(cache, view, now=NOW - dt.timedelta(hours=1))
    assert answer.because == "the engines will serve when they have been up for two seconds"
    assert answer.seconds == pytest.approx(1.5)  # type: ignore[union-attr]
