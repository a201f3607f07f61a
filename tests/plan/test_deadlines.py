"""What takes too long is told: in the status, and once by an event."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, NOW, group, healthy, later, step

from cachekeep import plan
from cachekeep.model import Act, Cache, Decide, Moment, Reason, Silence, Start, Step, View, Wait, Waited, alike
from cachekeep.model.step import DEADLINES_SECONDS
from cachekeep.plan import Policy, condition
from cachekeep.plan.deadlines import CREATION, CREATION_SECONDS, overdue
from cachekeep.plan.situation import Situation

DEADLINE = DEADLINES_SECONDS["answer"]


def waiting(seconds: float, *, reason: Reason = "answer", about: tuple[str, ...] = ("demo-001",)) -> View:
    """Demo's primary does not answer, and nobody knows why: so it has been waited for."""
    cache = group()
    seen = healthy(cache)
    silent = replace(seen.node("demo-001"), answer=Silence(seconds=1.0, reachable=True))
    return replace(seen, nodes=seen.nodes | {"demo-001": silent}, waited=Waited(reason=reason, about=about, seconds=seconds))


def saved(cache: Cache, answer: Step) -> Cache:
    assert isinstance(answer, Decide), answer
    return replace(cache, decided=answer.decided)


def told(cache: Cache, view: View, moment: Moment = MOMENT) -> tuple[Step, bool, str]:
    answer = step(cache, view, moment=moment)
    said = condition(Situation(cache, view, NOW, moment, Policy()), answer)
    return answer, said.refused, said.because


def test_a_wait_that_lasts_too_long_is_told_once_and_then_shown() -> None:
    cache = group()
    before = step(cache, waiting(DEADLINE - 0.1))
    assert isinstance(before, Wait)
    assert not before.refused
    first = step(cache, waiting(DEADLINE))
    assert isinstance(first, Decide)
    assert [e.message for e in first.events] == [first.because]
    assert first.because == f"{before.because}. That has been so for more than 120 s"
    answer, refused, because = told(saved(cache, first), waiting(DEADLINE + 60))
    assert isinstance(answer, Wait)
    assert answer.seconds == before.seconds
    assert (refused, because) == (True, first.because)


@pytest.mark.parametrize("view", [waiting(1e6, about=("demo-002",)), waiting(1e6, reason="sync")])
def test_a_wait_for_something_else_does_not_count(view: View) -> None:
    answer = step(group(), view)
    assert isinstance(answer, Wait)
    assert not answer.refused


def test_when_all_is_calm_the_next_time_is_told_again() -> None:
    cache = group()
    late = saved(cache, step(cache, waiting(DEADLINE)))
    calm = saved(late, step(late, healthy(late)))
    assert calm.decided == cache.decided
    assert isinstance(step(calm, waiting(DEADLINE)), Decide)


def test_what_is_told_as_a_problem_already_needs_no_deadline() -> None:
    view = replace(healthy(group()), waited=Waited(reason="answer", about=(), seconds=1e6))
    s = Situation(group(), view, NOW, MOMENT, Policy())
    refused = Wait(1.0, "answer", "x", refused=True)
    assert overdue(s, refused) == refused


def creation(moment: Moment, **changes: object) -> tuple[Cache, View]:
    """Its nodes are appointed, and none of their processes comes up."""
    cache = group(settled=False)
    cache = saved(cache, step(cache, View(free_addresses=ADDRESSES)))
    assert cache.decided.appointed_at == MOMENT
    return cache, View(free_addresses=ADDRESSES)


def test_creating_for_ever_is_told_whatever_is_tried_meanwhile() -> None:
    cache, view = creation(MOMENT)
    answer, refused, _ = told(cache, view, later(CREATION_SECONDS - 1))
    assert isinstance(answer, Act | Wait)
    assert not refused
    first = step(cache, view, moment=later(CREATION_SECONDS))
    assert isinstance(first, Decide)
    assert first.decided.overdue == {CREATION}
    assert first.because.startswith("demo has been creating for more than 600 s: ")
    assert [(e.source_type, e.message) for e in first.events] == [("replication-group", first.because)]
    again, refused, because = told(saved(cache, first), view, later(CREATION_SECONDS))
    assert isinstance(again, type(answer)), "nothing else comes of it"
    assert refused
    assert because


def test_an_effect_that_is_begun_again_and_again_is_no_excuse() -> None:
    cache, view = creation(MOMENT)
    s = Situation(cache, view, NOW, later(CREATION_SECONDS), Policy())
    act = Act(((Start("demo-001"),),), "demo-001 has no process yet")
    first = overdue(s, act)
    assert isinstance(first, Decide)
    late = replace(cache, decided=first.decided)
    s = Situation(late, view, NOW, later(CREATION_SECONDS), Policy())
    assert overdue(s, act) == act
    assert condition(s, act).refused


def test_a_cache_that_is_deleted_while_it_is_created_is_not_nagged_about() -> None:
    cache, view = creation(MOMENT)
    cache = replace(cache, wanted=replace(cache.wanted, deleted=True))
    answer = step(cache, view, moment=later(CREATION_SECONDS))
    assert not isinstance(answer, Decide)


def test_who_is_available_is_not_being_created() -> None:
    cache = group()
    assert cache.decided.appointed_at is None
    assert isinstance(step(cache, healthy(cache), moment=later(CREATION_SECONDS)), Wait)


def test_every_reason_is_given_by_some_rule() -> None:
    source = "".join(path.read_text() for path in Path(plan.__file__).parent.rglob("*.py"))
    given = set(re.findall(r'"([a-z]+)"', source))
    assert set(get_args(Reason)) <= given
    assert set(get_args(Reason)) >= set(DEADLINES_SECONDS)


def test_steps_are_alike_whatever_figures_their_sentences_hold() -> None:
    one = Wait(1.0, "limits", "12 MiB are in use", about=("demo-001",), refused=True)
    assert alike(one, replace(one, seconds=2.0, because="13 MiB are in use"))
    for other in (replace(one, about=("demo-002",)), replace(one, reason="room"), replace(one, refused=False), None):
        assert not alike(one, other)
    act = Act(((Start("demo-001"),),), "3 % done")
    assert alike(act, replace(act, because="4 % done"))
    assert not alike(act, replace(act, stages=((Start("demo-002"),),)))
