"""The door to jobs: one suite over what this process does and what the simulated world does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps

import pytest

from cachekeep.control.jobs import Jobs, JobsHere, Report
from cachekeep.errors import CachekeepError, OrderFailed
from cachekeep.model import Broken, JobSeen, Missing, Record, Tags, Task, Worked, Working
from cachekeep.sim.jobs import SimJobs, Tasks
from cachekeep.sim.timeless import run
from cachekeep.sim.world import World

KEY, OTHER = ("u1", "copy-1"), ("u2", "copy-1")


def task(seconds: float = 60.0, failures: int = 0) -> Task:
    return Task(kind="copy", arguments={"seconds": str(seconds), "failures": str(failures)})


def here() -> JobsHere:
    tries: dict[str, int] = {}

    async def copy(task: Task, report: Report) -> tuple[Record, ...]:
        tries["n"] = tries.get("n", 0) + 1
        for percent in (25.0, 50.0, 75.0, 100.0):
            await asyncio.sleep(float(task.arguments["seconds"]) / 4)
            report(percent)
        if tries["n"] <= int(task.arguments["failures"]):
            raise CachekeepError("it was told to fail")
        return (Tags(name="u1/copy-1", values={"attempt": str(tries["n"])}),)

    return JobsHere({"copy": copy})


WORLDS: dict[str, Callable[[], Jobs]] = {
    "here": here,
    "simulated": lambda: SimJobs(Tasks(World(1)), outlives=False),
    "simulated, outliving": lambda: SimJobs(Tasks(World(1)), outlives=True),
}
Test = Callable[[Jobs], Awaitable[None]]


def over_all(test: Test) -> Callable[[str], None]:
    @pytest.mark.parametrize("world", WORLDS)
    @wraps(test)
    def tried(world: str) -> None:
        async def main() -> None:
            await test(WORLDS[world]())

        run(main())

    del tried.__wrapped__  # type: ignore[attr-defined]
    return tried


async def seen(jobs: Jobs, key: tuple[str, str] = KEY) -> JobSeen:
    return (await jobs.look([key]))[key]


@over_all
async def test_it_goes_on_by_itself_to_its_end(jobs: Jobs) -> None:
    woken: list[str] = []
    forget = jobs.on_end(woken.append)
    assert await seen(jobs) == Missing()
    await jobs.begin(KEY, task(), 1)
    assert await seen(jobs) == Working(1)
    await asyncio.sleep(40)
    assert await seen(jobs) == Working(1, 50.0)
    assert woken == []
    await asyncio.sleep(21)
    assert await seen(jobs) == Worked(1, (Tags(name="u1/copy-1", values={"attempt": "1"}),))
    assert woken == ["u1"]
    forget()


@over_all
async def test_begun_twice_it_is_done_once(jobs: Jobs) -> None:
    await jobs.begin(KEY, task(), 1)
    await asyncio.sleep(40)
    await jobs.begin(KEY, task(), 1)
    assert await seen(jobs) == Working(1, 50.0)
    await asyncio.sleep(21)
    await jobs.begin(KEY, task(), 1)
    assert isinstance(await seen(jobs), Worked)


@over_all
async def test_a_failure_is_said_and_the_next_attempt_takes_its_place(jobs: Jobs) -> None:
    await jobs.begin(KEY, task(failures=1), 1)
    await asyncio.sleep(61)
    assert await seen(jobs) == Broken(1, "it was told to fail")
    await jobs.begin(KEY, task(failures=1), 2)
    assert await seen(jobs) == Working(2)
    await asyncio.sleep(61)
    assert isinstance(last := await seen(jobs), Worked)
    assert last.attempt == 2


@over_all
async def test_an_earlier_attempt_never_takes_the_place_of_a_later_one(jobs: Jobs) -> None:
    await jobs.begin(KEY, task(), 2)
    with pytest.raises(OrderFailed):
        await jobs.begin(KEY, task(), 1)
    assert await seen(jobs) == Working(2)
    await jobs.begin(KEY, task(90), 3)
    await asyncio.sleep(61)
    assert await seen(jobs) == Working(3, 50.0), "what attempt 2 would have said by now is nobody's"


@over_all
async def test_what_is_cancelled_ends_and_does_not_begin_again(jobs: Jobs) -> None:
    await jobs.begin(KEY, task(), 1)
    await jobs.begin(OTHER, task(), 1)
    for _ in range(2):
        await jobs.cancel(KEY)
    assert await seen(jobs) == Missing()
    with pytest.raises(OrderFailed):
        await jobs.begin(KEY, task(), 1)
    await asyncio.sleep(61)
    assert await seen(jobs) == Missing()
    assert isinstance(await seen(jobs, OTHER), Worked)
    await jobs.begin(KEY, task(), 2)
    assert await seen(jobs) == Working(2)


@over_all
async def test_what_is_abandoned_is_found_again_or_is_missing(jobs: Jobs) -> None:
    await jobs.begin(KEY, task(), 1)
    await jobs.begin(OTHER, task(), 1)
    await jobs.abandon("u1")
    assert await seen(jobs) in (Missing(), Working(1))
    assert await seen(jobs, OTHER) == Working(1)


def test_what_nobody_can_do_is_refused_and_what_nobody_expected_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(task: Task, report: Report) -> tuple[Record, ...]:
        raise ZeroDivisionError("by zero")

    async def main() -> None:
        jobs = JobsHere({"break": breaks})
        with pytest.raises(OrderFailed, match="nobody here can do a copy"):
            await jobs.begin(KEY, task(), 1)
        await jobs.begin(KEY, Task(kind="break"), 1)
        await asyncio.sleep(1)
        assert await seen(jobs) == Broken(1, "ZeroDivisionError: by zero")
        await jobs.aclose()
        assert await seen(jobs) == Missing()

    run(main())
    assert "in a way that nobody expected" in caplog.text
