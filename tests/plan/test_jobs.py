"""Tasks: begun, watched, begun again when they were lost or have failed, and never for longer than their deadline."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, gone, group, healthy, later, step

from cachekeep.model import (
    Act,
    Begin,
    Beginning,
    Broken,
    Cache,
    Cancel,
    Decide,
    Done,
    Failed,
    Flight,
    Forget,
    Job,
    JobSeen,
    Missing,
    NodeView,
    Resting,
    Running,
    Tags,
    Task,
    View,
    Wait,
    Worked,
    Working,
)
from cachekeep.model.job import JobState
from cachekeep.plan.invariants import check
from cachekeep.plan.jobs import ATTEMPTS_MAX, FIRST_REST_SECONDS

RECORD = Tags(name="left", values={})
MINUTES = 600.0


def with_task(state: JobState, job_id: str = "copy-1") -> Cache:
    cache = group(2)
    job = Job(id=job_id, work=Task(kind="copy"), began_at=MOMENT, deadline_seconds=MINUTES, state=state)
    return replace(cache, decided=replace(cache.decided, jobs=(job,)))


def seeing(cache: Cache, seen: JobSeen | None, **nodes: NodeView) -> View:
    return replace(healthy(cache, **nodes), jobs={} if seen is None else {"copy-1": seen})


@pytest.mark.parametrize(
    ("state", "seen", "next_", "because"),
    [
        (Beginning(1), Working(1), Running(1), "copy copy-1 has begun"),
        (Beginning(1), Worked(1), Done(), "copy copy-1 is done"),
        (Running(2), Worked(2), Done(), "copy copy-1 is done"),
        (Running(1), Broken(1, "no room."), Resting(1, MOMENT, "no room."), "attempt 1 of copy copy-1 has failed: no room"),
        (
            Running(1),
            Missing(),
            Resting(1, MOMENT, "it was lost in the middle"),
            "attempt 1 of copy copy-1 has failed: it was lost in the middle",
        ),
        (
            Running(2),
            Worked(1, (RECORD,)),
            Resting(2, MOMENT, "it was lost in the middle"),
            "attempt 2 of copy copy-1 has failed: it was lost in the middle",
        ),
        (
            Running(ATTEMPTS_MAX),
            Broken(ATTEMPTS_MAX, "no room"),
            Failed("no room"),
            f"attempt {ATTEMPTS_MAX} of copy copy-1 has failed: no room. It is not tried again",
        ),
        (Beginning(1), Working(3), Beginning(3), "attempt 3 of copy copy-1 is there already"),
    ],
)
def test_what_is_seen_is_written_down(state: JobState, seen: JobSeen, next_: JobState, because: str) -> None:
    cache = with_task(state)
    answer = step(cache, seeing(cache, seen))
    assert isinstance(answer, Decide)
    assert (answer.decided.jobs[0].state, answer.because) == (next_, because)
    assert [e.message for e in answer.events] == ([because] if isinstance(next_, Failed) else [])
    assert not check(answer.decided)


def test_what_it_leaves_comes_with_the_decision_that_it_is_done() -> None:
    cache = with_task(Running(1))
    answer = step(cache, seeing(cache, Worked(1, (RECORD,))))
    assert isinstance(answer, Decide)
    assert answer.records == (RECORD,)


def test_it_begins_where_its_door_has_nothing_of_it() -> None:
    for attempt, seen in ((1, Missing()), (2, Broken(1, "x")), (2, Working(1))):
        cache = with_task(Beginning(attempt))
        answer = step(cache, seeing(cache, seen))
        assert isinstance(answer, Act)
        assert answer.stages == ((Begin("copy-1", attempt),),)


@pytest.mark.parametrize("state", [Beginning(1), Running(1)])
def test_what_is_not_known_is_no_failure(state: JobState) -> None:
    cache = with_task(state)
    answer = step(cache, seeing(cache, None))
    assert isinstance(answer, Wait)
    assert (answer.reason, answer.because) == ("job", "nobody can say how copy copy-1 does")


def test_what_goes_on_is_waited_for_without_a_hurry() -> None:
    cache = with_task(Running(1))
    answer = step(cache, seeing(cache, Working(1, 40.0)))
    assert isinstance(answer, Wait)
    assert (answer.because, answer.refused) == ("copy copy-1 goes on: 40 % done", False)
    assert step(cache, seeing(cache, Working(1, 40.0)), moment=later(MINUTES - 3)).seconds == pytest.approx(3)  # type: ignore[union-attr]


def test_a_job_that_is_called_like_its_kind_is_named_once() -> None:
    resting = step(cache := with_task(Resting(1, MOMENT, "no room"), "copy"), healthy(cache))
    assert resting.because == "copy is tried again soon, since no room"


def test_a_failure_is_followed_by_a_rest_and_the_next_attempt() -> None:
    cache = with_task(Resting(1, MOMENT, "no room"))
    resting = step(cache, seeing(cache, Broken(1, "no room")))
    assert isinstance(resting, Wait)
    assert (resting.seconds, resting.because) == (FIRST_REST_SECONDS, "copy copy-1 is tried again soon, since no room")
    again = step(cache, seeing(cache, Broken(1, "no room")), moment=later(FIRST_REST_SECONDS))
    assert isinstance(again, Decide)
    assert again.decided.jobs[0].state == Beginning(2)


@pytest.mark.parametrize("state", [Beginning(1), Running(1), Resting(1, MOMENT, "x")])
@pytest.mark.parametrize("seen", [None, Working(1), Missing()])
def test_after_its_deadline_it_has_failed_whatever_it_does(state: JobState, seen: JobSeen | None) -> None:
    cache = with_task(state)
    answer = step(cache, seeing(cache, seen), moment=later(MINUTES))
    assert isinstance(answer, Decide)
    assert isinstance(answer.decided.jobs[0].state, Failed)
    assert answer.events[0].message.startswith("copy copy-1 has not ended within 600 s")


@pytest.mark.parametrize("state", [Done(), Failed("x")])
def test_what_has_ended_goes_on_nowhere(state: JobState) -> None:
    cache = with_task(state)
    answer = step(cache, seeing(cache, Working(1)))
    assert isinstance(answer, Act)
    assert answer.stages == ((Cancel("copy-1"),),)
    for seen in (Missing(), None):
        assert step(cache, seeing(cache, seen)).because == "demo is as it should be"


@pytest.mark.parametrize("state", [Beginning(1), Running(1), Resting(1, MOMENT, "x"), Done()])
def test_with_its_cache_it_is_cancelled_first(state: JobState) -> None:
    """Nothing is left of a cache as long as something is done for it."""
    cache = with_task(state)
    cache = replace(cache, wanted=replace(cache.wanted, deleted=True))
    away = {n.name: NodeView(process="absent") for n in cache.decided.nodes}

    def answer(seen: JobSeen | None, **more: object) -> object:
        return step(cache, replace(seeing(cache, seen), nodes=away, fronts={}, **more))  # type: ignore[arg-type]

    assert answer(Working(1)) == Act(((Cancel("copy-1"),),), "demo is deleted: what was being done for it ends")
    unknown = answer(None)
    assert isinstance(unknown, Wait)
    assert unknown.because == "nobody can say whether copy-1 goes on"
    begins = Flight(effect=Begin("copy-1", 1), because="it begins", since_seconds=0.0, left_seconds=9.0)
    assert isinstance(answer(Missing(), flights=(begins,)), Wait)
    assert isinstance(answer(Missing()), Forget)


def test_it_holds_up_no_failover() -> None:
    cache = with_task(Running(1))
    answer = step(cache, seeing(cache, Broken(1, "x"), demo_001=gone()))
    assert isinstance(answer, Decide)
    assert "demo-002" in answer.because
    assert answer.decided.jobs == cache.decided.jobs


def test_what_cannot_be() -> None:
    cache = with_task(Beginning(0))
    assert check(cache.decided) == ("copy-1 has attempt 0",)
    twice = replace(cache.decided, jobs=with_task(Done()).decided.jobs * 2)
    assert check(twice) == ("job copy-1 is there twice",)
