"""What renews the leases that this process holds: each in time, whatever the others do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cachekeep_patterns.ports import Beat, Threads
from patterns_rig.servers import wait_for

SOON, MUCH_LATER = 0.01, 3600.0


class Beats:
    def __init__(self, doing: Callable[[], object] = lambda: None) -> None:
        self.count = 0
        self._doing = doing

    async def __call__(self) -> bool:
        self.count += 1
        self._doing()
        return True


def every(seconds: float, beat: Beat) -> Callable[[], None]:
    return Threads().every(seconds, beat)


def pulses() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cachekeep-pulse"]


def test_a_renewal_that_hangs_holds_up_no_other() -> None:
    thawed = threading.Event()
    hanging, others = Beats(thawed.wait), [Beats(), Beats()]
    stops = [every(SOON, beats) for beats in (hanging, *others)]
    try:
        wait_for(lambda: hanging.count, "the server to hang")
        before = [beats.count for beats in others]
        wait_for(lambda: all(beats.count > n + 3 for beats, n in zip(others, before, strict=True)), "renewals beside it")
        assert hanging.count == 1
    finally:
        thawed.set()
        for stop in stops:
            stop()


def test_a_short_lease_taken_beside_a_long_one_is_renewed_when_it_is_due() -> None:
    stop_long = every(MUCH_LATER, Beats())
    short = Beats()
    stop_short = every(SOON, short)
    wait_for(lambda: short.count > 3, "renewals of the short lease")
    stop_short()
    stop_long()


def test_a_lease_given_back_while_it_is_renewed_is_not_renewed_again() -> None:
    renewing, go_on = threading.Event(), threading.Event()
    given_back = Beats(lambda: (renewing.set(), go_on.wait()))
    stop = every(SOON, given_back)
    assert renewing.wait(30)
    stop()
    go_on.set()
    other = Beats()
    stop_other = every(SOON, other)
    wait_for(lambda: other.count > 5, "renewals of another")
    stop_other()
    assert given_back.count == 1


def test_a_lease_that_is_lost_is_not_renewed_again_and_an_error_loses_none() -> None:
    lost = 0

    async def lose() -> bool:
        nonlocal lost
        lost += 1
        return False

    def fail() -> None:
        raise OSError("no answer")

    failing = Beats(fail)
    every(SOON, lose)
    stop = every(SOON, failing)
    wait_for(lambda: failing.count > 5, "renewals after errors")
    stop()
    assert lost == 1


def test_where_no_thread_can_be_had_one_renews_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Beats(), Beats()
    stops = [every(SOON, beats) for beats in (first, second)]
    wait_for(lambda: min(first.count, second.count), "a thread")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = first.count, second.count
    wait_for(lambda: first.count > before[0] + 5 and second.count > before[1] + 5, "renewals of both")
    for stop in stops:
        stop()


def test_no_thread_stays_when_nothing_is_held() -> None:
    stops = [every(SOON, beats) for beats in (Beats(), Beats())]
    for stop in stops:
        stop()
    wait_for(lambda: not pulses(), "the threads to end")
