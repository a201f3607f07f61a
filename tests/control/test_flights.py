"""What flies, what rests, and for how long."""

from __future__ import annotations

import pytest

from cachekeep.control.flights import LONGEST_REST_SECONDS, STEADY_SECONDS, Flights
from cachekeep.model import Apply, Follow, Start, Stop

UID, START, FOLLOW = "u1", Start("demo-002"), Follow("demo-002", "demo-001", 1)


class Time:
    at = 100.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def flights(time: Time) -> Flights:
    return Flights(time)  # type: ignore[arg-type]


def fail(flights: Flights, effect: Start | Follow, problem: str = "no") -> float:
    """Try once, in vain; how long it rests."""
    flights.begin(UID, effect, "because", deadline_seconds=20)
    flights.end(UID, effect, problem)
    rest = flights.rest_seconds(UID)
    assert rest is not None
    return rest


def test_what_flies_can_be_looked_at(flights: Flights, time: Time) -> None:
    flights.begin(UID, START, "it has no process yet", deadline_seconds=20)
    time.at += 3
    (flight,), failures = flights.seen(UID)
    assert (flight.effect, flight.because, flight.since_seconds, flight.left_seconds) == (START, "it has no process yet", 3, 17)
    assert failures == ()
    assert flights.seen("another") == ((), ())


def test_it_rests_for_longer_each_time_but_not_for_ever(flights: Flights, time: Time) -> None:
    rests = []
    for _ in range(10):
        rests.append(fail(flights, FOLLOW))
        time.at += rests[-1]
    assert rests[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert rests == sorted(rests)
    assert rests[-1] == pytest.approx(LONGEST_REST_SECONDS)


def test_each_effect_rests_by_itself(flights: Flights, time: Time) -> None:
    for _ in range(5):
        time.at += fail(flights, FOLLOW)
    assert fail(flights, Follow("demo-003", "demo-001", 1)) == pytest.approx(0.05)
    assert fail(flights, Follow("demo-002", "demo-001", 2)) == pytest.approx(0.05), "a later order is another order"


def test_what_has_worked_has_failed_no_more(flights: Flights, time: Time) -> None:
    time.at += fail(flights, FOLLOW)
    flights.begin(UID, FOLLOW, "because", deadline_seconds=20)
    ((_,), (failure,)) = flights.seen(UID)
    assert failure.again_seconds == 0, "it is being tried again"
    flights.end(UID, FOLLOW, None)
    assert flights.seen(UID) == ((), ())
    assert flights.problems(UID) == {}


def test_a_start_that_works_at_last_has_failed_no_more(flights: Flights, time: Time) -> None:
    for _ in range(4):
        time.at += fail(flights, START)
    flights.begin(UID, START, "because", deadline_seconds=20)
    flights.end(UID, START, None)
    assert flights.seen(UID) == ((), ())
    assert flights.rest_seconds(UID) is None


def test_what_nobody_asks_for_any_more_is_forgotten(flights: Flights, time: Time) -> None:
    time.at += fail(flights, FOLLOW) + LONGEST_REST_SECONDS
    assert flights.problems(UID) == {"demo-002": "no"}
    time.at += 0.1
    assert flights.seen(UID) == ((), ())
    assert flights.problems(UID) == {}


def test_how_something_ends_that_was_overtaken_means_nothing(flights: Flights) -> None:
    flights.begin(UID, START, "because", deadline_seconds=20)
    flights.begin(UID, Apply("demo-003", ("settings",)), "because", deadline_seconds=20)
    flights.begin(UID, Stop("demo-002"), "because", deadline_seconds=20)
    flights.end(UID, START, "stopped while it was starting")
    flying, failures = flights.seen(UID)
    assert [f.effect for f in flying] == [Apply("demo-003", ("settings",)), Stop("demo-002")]
    assert (failures, flights.problems(UID)) == ((), {})


def test_what_rests_is_hastened(flights: Flights, time: Time) -> None:
    for _ in range(8):
        time.at += fail(flights, START)
    fail(flights, START)
    flights.hasten()
    assert flights.rest_seconds(UID) is None
    _, (failure,) = flights.seen(UID)
    assert failure.again_seconds == 0


def test_a_process_that_ends_as_soon_as_it_has_started_is_not_started_without_end(flights: Flights, time: Time) -> None:
    """Each start says that it has worked."""
    rests = []
    for _ in range(9):
        flights.begin(UID, START, "because", deadline_seconds=20)
        time.at += 0.02
        flights.end(UID, START, None)
        rests.append(flights.rest_seconds(UID) or 0.0)
        time.at += rests[-1] + 0.01
    assert rests[:4] == pytest.approx([0, 0.05, 0.1, 0.2])
    assert rests[-1] == pytest.approx(LONGEST_REST_SECONDS)
    _, (failure,) = flights.seen(UID)
    assert failure.problem == "its process ends as soon as it has started"
    assert flights.problems(UID) == {}, "the driver knows why it ended"
    assert flights.rest_seconds(UID) == pytest.approx(STEADY_SECONDS - 0.01), "then there is something else to say"
    time.at += STEADY_SECONDS
    assert flights.seen(UID) == ((), ())


def test_a_process_that_has_lasted_is_started_again_at_once(flights: Flights, time: Time) -> None:
    for _ in range(6):
        flights.begin(UID, START, "because", deadline_seconds=20)
        flights.end(UID, START, None)
        time.at += (flights.rest_seconds(UID) or 0.0) + STEADY_SECONDS + 0.1
        assert flights.seen(UID) == ((), ())
