"""Who is cut off: the primary or we? The replicas are asked, in a way that makes them know."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.plan.builders import group, healthy, running, silent, step

from cachekeep.model import Act, Cache, Decide, View, Wait, Witness
from cachekeep.plan import Policy


def _view(cache: Cache, seconds: float, **replicas: object) -> View:
    """The primary takes nothing from here; both replicas are alike."""
    return healthy(
        cache,
        demo_001=silent(cache, "demo-001", seconds, reachable=False),
        demo_002=running(cache, "demo-002", **replicas),
        demo_003=running(cache, "demo-003", **replicas),
    )


def test_replicas_are_made_to_connect_anew_before_their_word_counts() -> None:
    cache = group()
    answer = step(cache, _view(cache, 0.5, reaches=True))
    assert answer == Act(
        ((Witness("demo-002", "demo-001"), Witness("demo-003", "demo-001")),),
        "demo-001 takes nothing from here: demo-002 and demo-003 try to reach it",
    )


def test_nobody_is_asked_too_early() -> None:
    cache = group()
    assert isinstance(step(cache, _view(cache, 0.1, reaches=True)), Wait)


def test_one_that_reached_the_primary_just_now_is_believed_and_not_asked_again() -> None:
    cache = group()
    answer = step(cache, _view(cache, 3.0, reaches=True, witnessed_seconds=1.0))
    assert isinstance(answer, Wait)
    assert "it may be we who are cut off" in answer.because


def test_one_that_reached_it_long_ago_is_asked_again() -> None:
    cache = group()
    answer = step(cache, _view(cache, 9.0, reaches=True, witnessed_seconds=Policy().witness_seconds))
    assert isinstance(answer, Act)


def test_a_single_replica_that_reaches_it_is_enough_to_leave_it_alone() -> None:
    cache = group()
    view = _view(cache, 9.0, reaches=False, witnessed_seconds=0.1)
    view.nodes["demo-003"] = running(cache, "demo-003", reaches=True, witnessed_seconds=0.1)
    assert isinstance(step(cache, view), Wait)


@pytest.mark.parametrize("reaches", [None, True])
def test_a_replica_that_does_not_know_condemns_nobody(reaches: bool | None) -> None:
    cache = group()
    assert isinstance(step(cache, _view(cache, 60.0, reaches=reaches, witnessed_seconds=0.1)), Wait)


def test_a_primary_that_no_replica_reaches_is_fenced_first() -> None:
    cache = group()
    answer = step(cache, _view(cache, 0.5, reaches=False, link_up=False))
    assert isinstance(answer, Decide)
    assert answer.decided.nodes[0].condemned
    assert "for its replicas too" in answer.because


def test_without_a_replica_that_could_tell_an_unreachable_primary_is_left_alone() -> None:
    cache = group(shards={"in_sync": frozenset()})
    view = _view(cache, 60.0, reaches=False, link_up=False)
    assert isinstance(step(cache, view), Wait)


def test_without_automatic_failover_nobody_is_bothered() -> None:
    cache = group()
    cache = replace(cache, wanted=replace(cache.wanted, automatic_failover=False))
    assert not isinstance(step(cache, _view(cache, 9.0, reaches=True)), Act)
