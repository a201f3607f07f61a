"""A shard that has given its last slot away stays for a while, and sends clients on; then it goes as a whole."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, gone, later, silent, step
from tests.plan.test_cluster_keeping import plan_until_wait, with_node, without_members
from tests.plan.test_cluster_plan import ONE, OTHER, OTHERS_REPLICA, TWO, cluster, seen, settled, shard

from cachekeep.model import (
    Act,
    Cache,
    Decide,
    Erase,
    Move,
    Predecessor,
    Resharded,
    Resharding,
    View,
    Wait,
)
from cachekeep.plan import Policy, condition
from cachekeep.plan.nodes.cluster import SENDING_ON_SECONDS
from cachekeep.plan.situation import Situation
from cachekeep.plan.slots.ranges import SLOTS

ALL = ((0, SLOTS - 1),)
HALF = ((0, SLOTS // 2 - 1),)
LINGER = Policy().linger_seconds
SHORT = Policy(linger_seconds=2.0)


def emptied(*, resharding: int = 9) -> tuple[Cache, View]:
    """Two shards, of which the second is not wanted any more and owns nothing any more."""
    cache, view = settled(2)
    one, two = cache.decided.shards
    shards = (replace(one, slots=ALL, owned=ALL), replace(two, slots=(), owned=()))
    holder = cache.decided.nodes[0].name
    reshard = Resharding(slots=resharding) if resharding else None
    decided = replace(cache.decided, shards=shards, reshard=reshard, configuration_node=holder)
    cache = replace(cache, decided=decided, wanted=replace(cache.wanted, shards=cache.wanted.shards[:1]))
    bound = frozenset({cache.decided.nodes[0].address, cache.decided.configuration_address or ""})
    view = seen(view, demo_0001_001={**cluster(view, holder, slots=ALL), "bound": bound})
    own = frozenset({cache.decided.nodes[-1].address})
    view = seen(view, demo_0002_001=cluster(view, OTHER, slots=()), demo_0002_002={"bound": own})
    return cache, view


def lingering(seconds: float) -> tuple[Cache, View]:
    """Its last slot has left so long ago."""
    cache, view = emptied(resharding=0)
    return replace(cache, decided=replace(cache.decided, reshard=Resharded(since=later(-seconds)))), view


def test_when_the_last_slot_has_left_is_written_down() -> None:
    cache, view = emptied()
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because == "all slots are where they belong, in 1 shards"
    assert answer.decided == replace(cache.decided, reshard=Resharded(since=MOMENT))


def test_an_emptied_shard_is_not_sent_away_at_once() -> None:
    cache, view = emptied()
    after = plan_until_wait(cache, view)
    assert not any(n.leaving for n in after.decided.nodes)
    assert step(after, view) == Wait(LINGER, "linger", "clients of the shards that go are still sent on to others")


def test_it_goes_when_that_has_lasted_for_long_enough_and_not_before() -> None:
    for policy in (Policy(), SHORT):
        cache, view = lingering(policy.linger_seconds - 0.5)
        assert step(cache, view, policy) == Wait(0.5, "linger", "clients of the shards that go are still sent on to others")
        answer = step(cache, view, policy, later(0.5))
        assert isinstance(answer, Decide)
        assert answer.because == f"{OTHER} and {OTHERS_REPLICA} are no longer wanted"
        assert {n.name for n in answer.decided.nodes if n.leaving} == {OTHER, OTHERS_REPLICA}


def test_a_node_that_ends_meanwhile_is_started_again() -> None:
    """It owns nothing, but somebody who looks for slots there is told where they are."""
    cache, view = lingering(1.0)
    answer = step(cache, seen(view, demo_0002_001=gone(), demo_0002_002=gone()))
    assert isinstance(answer, Decide)
    assert answer.because == f"{OTHER} and {OTHERS_REPLICA} ended and are started again"


def test_while_it_lingers_the_group_is_being_modified() -> None:
    cache, view = lingering(1.0)
    s = Situation(cache, view, NOW, MOMENT, Policy())
    told = condition(s, step(cache, view))
    assert told.status == "modifying"
    assert {n.name: n.status for n in told.nodes}[OTHER] == "available"


def test_where_all_shards_stay_nothing_lingers() -> None:
    cache, view = settled(2)
    cache = replace(cache, decided=replace(cache.decided, reshard=Resharded(since=later(-1.0))))
    assert step(cache, view) == Wait(Policy().rest_seconds, "calm", "demo is as it should be")


# -- a node that has handed its shard over


def handed_over(seconds: float, **node: Any) -> tuple[Cache, View]:
    """The first shard's replica led before its primary does, until so long ago."""
    cache, view = settled(2)
    cache = shard(with_node(cache, TWO, **node), predecessor=Predecessor(name=TWO, since=later(-seconds)))
    return cache, view


def test_who_led_before_and_since_when_another_does_is_written_down() -> None:
    cache, view = settled(2)
    cache = shard(cache, change=Move(to=TWO), order=2)
    view = seen(view, demo_0001_001={"role": "replica", "follows": view.node(ONE).follows})
    view = seen(
        view, demo_0001_001=cluster(view, ONE, slots=()), demo_0001_002={"role": "primary", **cluster(view, TWO, slots=HALF)}
    )
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because.startswith(f"{TWO} leads shard 0001 in place of {ONE}")
    led = answer.decided.shards[0]
    assert (led.primary, led.predecessor) == (TWO, Predecessor(name=ONE, since=MOMENT))


def test_it_restarts_when_it_has_sent_its_clients_on_and_not_before() -> None:
    """A reboot is waited for; an upgrade may take its time."""
    hasty = Policy(linger_seconds=0.75)
    for policy, due, span in (
        (Policy(), "reboot", SENDING_ON_SECONDS),
        (hasty, "reboot", 0.75),
        (Policy(), "upgrade", LINGER),
        (hasty, "upgrade", 0.75),
    ):
        cache, view = handed_over(span - 0.5, due=due)
        assert step(cache, view, policy) == Wait(
            0.5, "linger", f"clients of {TWO} are still sent on to {ONE}; then it restarts", about=(TWO,)
        )
        answer = step(cache, view, policy, later(0.5))
        assert isinstance(answer, Decide)
        assert answer.because == f"{TWO} restarts by plan ({due})"


def test_one_that_has_not_led_restarts_at_once() -> None:
    cache, view = settled(2)
    cache = shard(with_node(cache, TWO, due="reboot"), predecessor=Predecessor(name=OTHER, since=later(-0.1)))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because == f"{TWO} restarts by plan (reboot)"


def test_it_leaves_when_it_has_sent_its_clients_on_and_not_before() -> None:
    """It does not come back: it stays for as long as a shard without slots does."""
    cache, view = handed_over(LINGER - 0.5, leaving=True)
    cache = without_members(cache, TWO)
    after = plan_until_wait(cache, view)
    assert step(after, view) == Wait(0.5, "linger", f"clients of {TWO} are still sent on to others", about=(TWO,))
    assert step(after, view, Policy(), later(0.5)) == Act(((Erase(TWO),),), f"{TWO} leaves: process and files go")


def test_one_that_does_not_answer_sends_nobody_on() -> None:
    cache, view = handed_over(0.1, leaving=True)
    cache = without_members(cache, TWO)
    view = seen(view, demo_0001_002=silent(cache, TWO, 9.0, process="frozen"))
    after = plan_until_wait(cache, view)
    assert step(after, view) == Act(((Erase(TWO),),), f"{TWO} leaves: process and files go")


def test_a_shard_that_goes_needs_no_leader_while_its_last_node_sends_clients_on() -> None:
    """Its primary has left already. To have one lead who leaves would be called off, and decided again, without end."""
    cache, view = lingering(LINGER + 1)
    cache = with_node(with_node(cache, OTHER, leaving=True), OTHERS_REPLICA, leaving=True)
    one, two = cache.decided.shards
    two = replace(two, predecessor=Predecessor(name=OTHERS_REPLICA, since=later(-0.1)))
    cache = replace(cache, decided=replace(cache.decided, shards=(one, two)))
    after = plan_until_wait(cache, seen(view, demo_0002_001=gone()))
    assert not any(x.moving_to for x in after.decided.shards)
