"""Cluster mode: who takes over without a vote, and who might be elected in its place meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, gone, later, step
from tests.plan.test_cluster_keeping import THREE, one_shard, stopped_by
from tests.plan.test_cluster_plan import ONE, OTHER, TWO, cluster, electing, first, seen, settled, shard

from cachekeep.engines.config import settings
from cachekeep.engines.runtime import runtime
from cachekeep.model import (
    Act,
    Apply,
    Cache,
    Decide,
    Elect,
    Election,
    Move,
    Silence,
    View,
)


def rival(**changes: Any) -> tuple[Cache, View]:
    """The second is to take over from the first, which is gone; the third, in sync as well, could be elected by the engines."""
    cache, view = one_shard()
    cache = shard(cache, change=Election(to=TWO, lost=ONE, since=later(-0.1), seize=True), order=2)
    return cache, seen(view, demo_0001_001=gone(), demo_0001_003=changes)


@pytest.mark.parametrize("seconds", [2.0, 60.0])
def test_a_vote_that_has_failed_is_followed_by_a_takeover_with_a_time_of_its_own(seconds: float) -> None:
    """Not only for as long as no engine can have begun an election, by some clock: what another one does is seen to."""
    cache, view = settled(3)
    answer = step(electing(cache, seconds), seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2}))
    assert isinstance(answer, Decide)
    assert (
        answer.because
        == f"the vote for {TWO} has failed, and {ONE} is confirmed stopped: it takes over when nobody else can be elected"
    )
    decided = answer.decided.shards[0]
    assert (decided.order, decided.change) == (3, Election(to=TWO, lost=ONE, since=MOMENT, seize=True))


def test_a_takeover_is_called_off_when_nothing_comes_of_it() -> None:
    cache, view = settled(3)
    answer = step(electing(cache, 8.0, seize=True), seen(view, demo_0001_001=gone(), demo_0001_002={"last_order": 2}))
    assert answer.because == f"the lead of shard 0001 does not go to {TWO}: {TWO} was not elected"


def test_nobody_takes_over_while_another_could_be_elected() -> None:
    cache, view = rival()
    assert step(cache, view) == Act(((Apply(THREE, ("settings",)),),), f"{THREE} abstains from elections while {TWO} takes over")
    taker, third = cache.node(TWO), cache.node(THREE)
    assert taker is not None
    assert third is not None
    assert settings(cache, third).live["cluster-replica-no-failover"] == "yes"
    assert settings(cache, taker).live["cluster-replica-no-failover"] == "no"
    confirmed = rival(digests=runtime(cache, third).digests)
    assert first(step(*confirmed)) == Elect(TWO, 2, True, (OTHER, "demo-0003-001"))
    over = shard(cache, change=None)
    assert settings(over, third).live["cluster-replica-no-failover"] == "no"
    assert runtime(over, third).digests != runtime(cache, third).digests, "so it is configured again"


def test_one_that_is_gone_cannot_be_elected() -> None:
    assert isinstance(first(step(*rival(process="exited", answer=None))), Elect)


def test_one_that_has_been_elected_already_leads() -> None:
    cache, view = rival()
    elected = cluster(view, THREE, slots=((0, 5460),), epoch=9) | {"role": "primary", "follows": None}
    assert step(cache, seen(view, demo_0001_003=elected)).because == f"{THREE} leads shard 0001 in place of {ONE}, at epoch 9"


@pytest.mark.parametrize(
    ("hangs", "stopped"),
    [
        ({"answer": Silence(1.0)}, []),
        ({"answer": Silence(5.0)}, [THREE]),
        ({"process": "frozen", "answer": None}, [THREE]),
    ],
)
def test_one_that_does_not_confirm_is_waited_for_and_then_stopped_for_certain(hangs: dict[str, Any], stopped: list[str]) -> None:
    answer = step(*rival(**hangs))
    assert stopped_by(answer) == stopped
    if not stopped:
        assert answer.because == f"{TWO} takes over when {THREE} cannot be elected in its place"


def test_where_there_is_no_other_shard_there_is_nobody_who_could_elect_it() -> None:
    cache, view = rival()
    shards = (cache.decided.shards[0], *(replace(x, owned=()) for x in cache.decided.shards[1:]))
    assert isinstance(first(step(replace(cache, decided=replace(cache.decided, shards=shards)), view)), Elect)


def test_a_giver_that_has_not_heard_that_it_was_replaced_is_stopped_for_certain() -> None:
    """Its pause ends soon, and then it would take writes beside the taker."""
    cache, view = settled(3)
    mine = cache.decided.shards[0].owned
    cache = shard(cache, change=Move(to=TWO), order=2)
    taken = {"role": "primary", "follows": None, "last_order": 2, **cluster(view, TWO, slots=mine, epoch=9)}
    answer = step(cache, seen(view, demo_0001_002=taken))
    assert isinstance(answer, Decide)
    assert (answer.decided.shards[0].primary, answer.decided.nodes[0].condemned) == (TWO, True)
    assert f"{ONE} has not heard of it" in answer.because
    heard = {"role": "replica", **cluster(view, ONE, slots=())}
    answer = step(cache, seen(view, demo_0001_001=heard, demo_0001_002=taken))
    assert isinstance(answer, Decide)
    assert (answer.decided.shards[0].primary, answer.decided.nodes[0].condemned) == (TWO, False)
