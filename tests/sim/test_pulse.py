"""Heartbeats in virtual time: how often they ask, and when they call silence by its name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from cachekeep.compute.contract import Key, Target
from cachekeep.compute.line import Answer, Line, parse_resp
from cachekeep.compute.pulse import Moments, Pulse
from cachekeep.model import Moment, Secret
from cachekeep.sim.timeless import UP_SECONDS, SimClock, run


class Engine(Line):
    """Answers at once, unless it is mute."""

    def __init__(self) -> None:
        super().__init__(parse_resp)
        self.open, self.mute = True, False
        self.asked: list[float] = []

    def send(self, payload: bytes, count: int, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        self.asked.append(loop.time())
        if not self.mute:
            loop.call_soon(answer, [b"# Replication\r\nrole:master\r\nmaster_replid:x\r\n"])


def pulse_of(
    engine: Engine, name: str, moments: Moments, woken: list[float], heard: Callable[[object, Moment], object] = lambda *_: None
) -> Pulse:
    async def open_line() -> Line:
        return engine

    def wake(key: Key) -> None:
        woken.append(asyncio.get_running_loop().time())

    target = Target(key=("uid", name), address="127.0.0.1", port=6379, engine="valkey", version="8.0", password=Secret("x"))
    return Pulse(
        target,
        open_line=open_line,
        give_up=lambda: None,
        interval_seconds=0.4,
        deadline_seconds=0.25,
        wake=wake,
        moments=moments,
        heard=heard,
        clock=SimClock(random.Random(1)),
    )


def test_lines_that_are_lost_do_not_make_the_heart_beat_faster() -> None:
    async def life() -> None:
        engine, woken = Engine(), list[float]()
        pulse = pulse_of(engine, "a", Moments(), woken)
        await asyncio.sleep(1)
        for _ in range(5):
            pulse.lost()
            await asyncio.sleep(0.15)
        engine.asked.clear()
        await asyncio.sleep(4)
        assert len(engine.asked) == 10
        assert len(woken) == 1  # the first answer
        pulse.stop()
        engine.asked.clear()
        await asyncio.sleep(4)
        assert not engine.asked

    run(life())


def test_silence_is_told_at_the_deadline_then_at_each_interval_and_its_end_at_once() -> None:
    async def life() -> None:
        moments, woken = Moments(), list[float]()
        well, ill = Engine(), Engine()
        others = [pulse_of(well, f"other-{n}", moments, []) for n in range(20)]
        pulse = pulse_of(ill, "a", moments, woken)
        await asyncio.sleep(1)
        for _ in range(5):
            pulse.lost()
            await asyncio.sleep(0.15)
        woken.clear()
        ill.asked.clear()
        ill.mute = True
        await asyncio.sleep(2)
        assert len(ill.asked) == 1  # it is owed one answer, and not asked for more
        assert len(woken) >= 4
        assert woken == pytest.approx([ill.asked[0] + 0.25 + 0.4 * n for n in range(len(woken))])
        ill.mute = False
        woken.clear()
        pulse._answered([b"role:master\r\n"])
        assert len(woken) == 1
        for each in (*others, pulse):
            each.stop()

    run(life())


def test_what_is_heard_late_was_said_at_the_earliest_when_it_was_asked() -> None:
    """Whoever was halted between question and answer finds the answer in its socket, and it says nothing of the time since."""

    async def life() -> None:
        engine, heard = Engine(), list[Moment]()
        pulse = pulse_of(engine, "a", Moments(), [], lambda _, asked_at: heard.append(asked_at))
        await asyncio.sleep(1.05)  # between two beats, whenever the first was
        assert [h.seconds for h in heard] == [UP_SECONDS + at for at in engine.asked]
        engine.mute = True
        await asyncio.sleep(2)
        pulse._answered([b"role:master\r\n"])
        assert heard[-1].seconds == UP_SECONDS + engine.asked[-1]
        assert engine.asked[-1] < asyncio.get_running_loop().time() - 1
        pulse.stop()

    run(life())
