"""Workers run beside each other, and one that ends is noticed."""

from __future__ import annotations

import asyncio

import pytest

from cachekeep.control.workers import at_work


class Hand:
    """Works until it is cancelled, or until it fails."""

    def __init__(self, failing: Exception | None = None) -> None:
        self.failing = failing
        self.said: list[str] = []

    async def run(self) -> None:
        self.said.append("begun")
        try:
            if self.failing is not None:
                raise self.failing
            await asyncio.Event().wait()
        finally:
            self.said.append("ended")

    def hasten(self) -> None: ...


@pytest.mark.anyio
async def test_all_work_until_the_end_of_the_block_and_have_ended_after_it() -> None:
    first, second = Hand(), Hand()
    async with at_work([first, second]) as working:
        await asyncio.sleep(0)
        assert [first.said, second.said] == [["begun"], ["begun"]]
        assert not any(task.done() for task in working)
    assert [first.said, second.said] == [["begun", "ended"], ["begun", "ended"]]


@pytest.mark.anyio
async def test_what_ended_one_is_seen_at_once_and_raised_when_the_others_have_ended() -> None:
    other = Hand()
    with pytest.raises(ValueError, match="broken"):
        async with at_work([other, Hand(ValueError("broken"))]) as working:
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
    assert other.said == ["begun", "ended"]
