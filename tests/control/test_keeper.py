"""The keeper over a simulated world: what it says when it fails, what it does not begin any more, and who is not kept waiting."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from cachekeep.compute.contract import Key, ProcessSeen, ProcessSpec, Targets
from cachekeep.control import keeper as keeping
from cachekeep.control.jobs import JobsHere
from cachekeep.control.observe import LATE_SECONDS, LOOK_DEADLINE_SECONDS, Late, Observer
from cachekeep.errors import LeaseLost, OrderFailed
from cachekeep.model import Act, Cache, Condition, Follow, Promote, Start, Step, View, Wait
from cachekeep.network.addresses import Pool
from cachekeep.plan.deadlines import CREATION_SECONDS
from cachekeep.plan.nodes import announce
from cachekeep.sim.doors import SimDriver, SimLink
from cachekeep.sim.run import UID, Run, Scenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import SEALING
from cachekeep.store.contract import StoreFailed


class Story(Run):
    """A group of three that is well, and then what ``tell`` does."""

    def __init__(self, tell: Callable[[Story], Awaitable[None]]) -> None:
        super().__init__(Scenario(7, nodes=3, faults=False, moves=False, two_keepers=False, flaky=0.0))
        self.tell = tell

    async def told(self) -> Condition | None:
        async with self.store.reading() as tx:
            return await tx.condition(UID)

    async def soon(self, met: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 10.0) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not (found if isinstance(found := met(), bool) else await found):
            assert loop.time() < end, what
            await asyncio.sleep(0.01)

    async def go(self) -> None:
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper0")]
        try:
            await self._until(self._healthy, "creation")
            await asyncio.sleep(1)
            await self.tell(self)
        finally:
            for task in (*self.keepers, *self.world.tasks):
                task.cancel()
            await asyncio.gather(*self.keepers, return_exceptions=True)

    def led_by(self, *names: str) -> bool:
        assert self.cache is not None
        leader = self.world.at(self.cache.decided.shards[0].primary_address or "")
        return leader is not None and leader.role == "primary" and leader.spec.key[1] in names


def tell(story: Callable[[Story], Awaitable[None]]) -> None:
    run(Story(story).go())


def test_a_pass_that_fails_in_a_way_that_nobody_expected_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes are watched on, and it goes on by itself when that is over."""
    real = keeping.plan

    def broken(*asked: Any) -> Step:
        raise ZeroDivisionError("a rule is wrong")

    watched: set[str] = set()
    watch = SimLink.watch

    def noted(self: SimLink, target: Any, **how: Any) -> None:
        watched.add(target.key[1])
        watch(self, target, **how)

    async def story(s: Story) -> None:
        monkeypatch.setattr(keeping, "plan", broken)
        monkeypatch.setattr(SimLink, "watch", noted)
        s.world.kill((UID, "demo-003"))

        async def confessed() -> bool:
            told = await s.told()
            return told is not None and told.refused and "ZeroDivisionError: a rule is wrong" in told.because

        await s.soon(confessed, "word of it")
        told = await s.told()
        assert told is not None
        assert len(told.nodes) == 3, "how they were is still known"
        assert watched >= {"demo-001", "demo-002"}
        monkeypatch.setattr(keeping, "plan", real)
        await s.soon(s._healthy, "recovery")

        async def calm() -> bool:
            told = await s.told()
            return told is not None and not told.refused

        await s.soon(calm, "a calm word")

    tell(story)


def test_a_death_is_acted_upon_at_once_when_passes_have_failed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that fail are tried at longer and longer intervals; a death ends the interval."""
    real = keeping.plan

    def broken(*asked: Any) -> Step:
        raise ZeroDivisionError

    async def story(s: Story) -> None:
        monkeypatch.setattr(keeping, "plan", broken)
        s.world.kill((UID, "demo-003"))
        await asyncio.sleep(20)
        monkeypatch.setattr(keeping, "plan", real)
        s.world.kill((UID, "demo-001"))
        await s.soon(lambda: s.led_by("demo-002"), "failover", 2 * keeping.NOISE_SECONDS)

    tell(story)


def test_nothing_is_done_beside_a_promotion_for_a_death_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a process is told twice, by its driver and by its lost connection. The second word begins no look, and nothing is
    written for the API side, while the next primary is told to lead: clients wait for that."""
    told: list[str] = []
    watch, look, carry, observe = SimLink.watch, SimLink.look, SimLink.carry, Observer.look

    async def story(s: Story) -> None:
        wakes: dict[Key, Callable[[Key], None]] = {}
        killed = False
        publish = s.store.publish

        def watched(self: SimLink, target: Any, *, wake: Callable[[Key], None], **how: Any) -> None:
            wakes[target.key] = wake
            watch(self, target, wake=wake, **how)

        async def looked(self: SimLink, target: Any, **how: Any) -> Any:
            if killed:
                wakes[UID, "demo-001"]((UID, "demo-001"))
            return await look(self, target, **how)

        async def carried(self: SimLink, effect: Any, at: Targets) -> None:
            told.append(f"{type(effect).__name__} begins")
            await asyncio.sleep(keeping.PATIENCE_SECONDS / 4)
            await carry(self, effect, at)
            told.append(f"{type(effect).__name__} ends")

        async def observed(self: Observer, cache: Cache) -> View:
            told.append("look")
            return await observe(self, cache)

        async def published(*what: Any) -> None:
            told.append("publish")
            await publish(*what)

        monkeypatch.setattr(SimLink, "watch", watched)
        monkeypatch.setattr(SimLink, "look", looked)
        monkeypatch.setattr(SimLink, "carry", carried)
        monkeypatch.setattr(Observer, "look", observed)
        monkeypatch.setattr(s.store, "publish", published)
        await s.soon(lambda: (UID, "demo-001") in wakes, "a heartbeat")
        told.clear()
        killed = True
        s.world.kill((UID, "demo-001"))
        await s.soon(lambda: "Promote ends" in told, "failover")
        assert told[: told.index("Promote ends") + 1] == ["look", "Promote begins", "Promote ends"]

    tell(story)


def test_a_keeper_that_may_do_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease may be another's by now, and there is something to be done: it looks now and then, and does not turn in circles."""
    looks, observe = 0, Observer.look

    async def story(s: Story) -> None:
        async def observed(self: Observer, cache: Cache) -> View:
            nonlocal looks
            looks += 1
            if looks > 100:
                await asyncio.sleep(1)  # in circles no time goes by
            return await observe(self, cache)

        monkeypatch.setattr(Observer, "look", observed)
        ours = keeping.Keeper._ours
        monkeypatch.setattr(keeping.Keeper, "_ours", lambda self, kept: None)
        s.world.kill((UID, "demo-003"))
        await asyncio.sleep(10)
        assert looks < 100
        monkeypatch.setattr(keeping.Keeper, "_ours", ours)
        await s.soon(s._healthy, "recovery")

    tell(story)


def test_leases_are_renewed_and_claimed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(s: Story) -> None:
        real, failing = s.store.renew, [RuntimeError("odd"), StoreFailed("away")]

        async def renew(*args: Any, **named: Any) -> Any:
            if failing:
                raise failing.pop()
            return await real(*args, **named)

        monkeypatch.setattr(s.store, "renew", renew)
        await asyncio.sleep(3 * keeping.LEASE_SECONDS)
        assert not failing
        s.world.kill((UID, "demo-001"))
        await s.soon(lambda: s.led_by("demo-002", "demo-003"), "failover", 1.0)

    tell(story)


def test_a_task_that_ended_by_accident_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(s: Story) -> None:
        (task,) = [t for t in asyncio.all_tasks() if t.get_name() == f"keep {UID}"]
        task.cancel()
        await asyncio.sleep(keeping.LEASE_SECONDS / 3 + 0.1)
        s.world.kill((UID, "demo-001"))
        await s.soon(lambda: s.led_by("demo-002", "demo-003"), "failover", 1.0)

    tell(story)


def test_nothing_is_begun_any_more_when_the_lease_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the next stage of what was begun before: it is another's to decide now."""
    followed: list[str] = []

    async def story(s: Story) -> None:
        held = asyncio.Event()
        real_promote = SimLink.promote

        async def promote(self: SimLink, effect: Promote, at: Targets) -> None:
            await real_promote(self, effect, at)
            await held.wait()

        async def follow(self: SimLink, effect: Follow, at: Targets) -> None:
            followed.append(effect.node)

        async def lost(*args: Any, **named: Any) -> Any:
            raise LeaseLost("another has it")

        monkeypatch.setattr(SimLink, "promote", promote)
        monkeypatch.setattr(SimLink, "follow", follow)
        s.world.kill((UID, "demo-001"))
        await s.soon(lambda: s.led_by("demo-002", "demo-003"), "promotion")
        monkeypatch.setattr(s.store, "publish", lost)
        monkeypatch.setattr(s.store, "save_decided", lost)
        s.world.kill((UID, "readers"))
        await asyncio.sleep(1)
        held.set()
        await asyncio.sleep(1)
        assert followed == []

    tell(story)


async def test_what_comes_after_is_left_out_when_something_else_has_been_decided() -> None:
    """The second stage rests on the decision that the first was begun by."""
    story = Story(lambda s: asyncio.sleep(0))
    story.cache = cache = await _created(story)
    hands, began = _noting_hands(story)
    act = Act(((Promote("demo-001", 1, ()),), (Follow("demo-002", "demo-001", 1),)), "because")
    other = replace(cache.decided, discovery_version=9)
    await hands.begin(cache, act, decided=lambda: other, ended=lambda: None)
    assert began == ["Promote"]
    began.clear()
    await hands.begin(cache, act, decided=lambda: None, ended=lambda: None)
    assert began == [], "nor anything at all when that is another's to say"
    await hands.begin(cache, act, decided=lambda: cache.decided, ended=lambda: None)
    assert began == ["Promote", "Follow"]


async def test_what_comes_after_is_left_out_when_its_node_is_busy() -> None:
    story = Story(lambda s: asyncio.sleep(0))
    story.cache = cache = await _created(story)
    hands, began = _noting_hands(story)
    hands._observer.flights.begin(cache.uid, Start("demo-002"), "because", deadline_seconds=5)
    act = Act(((Promote("demo-001", 1, ()),), (Follow("demo-002", "demo-001", 1),)), "because")
    await hands.begin(cache, act, decided=lambda: cache.decided, ended=lambda: None)
    assert began == ["Promote"]


async def _created(story: Story) -> Cache:
    await story.store.open()
    await story._create()
    cache = await story.store.load(UID)
    assert cache is not None
    return cache


def _noting_hands(story: Story) -> tuple[Any, list[str]]:
    """Hands that do nothing, and what they were to do."""
    hands, began = _hands(story), list[str]()

    async def carry(_: Cache, effect: Any) -> None:
        began.append(type(effect).__name__)

    hands._carry = carry
    return hands, began


def _hands(story: Story) -> Any:
    from cachekeep.control import Hands, Observer
    from cachekeep.sim.fronts import SimFronts

    driver, link = story._doors("keeper0")
    fronts = SimFronts(story.world)
    observer = Observer(
        store=story.store,
        driver=driver,
        link=link,
        fronts=fronts,
        jobs=JobsHere({}),
        clock=story.clock,
        places=Pool("127.77.0.0/16"),
        password_of=SEALING.password_of,
    )
    return Hands(driver=driver, link=link, fronts=fronts, specs=story._spec, observer=observer)


def test_a_driver_that_does_not_answer_costs_a_look_and_not_the_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimDriver.look

    async def story(s: Story) -> None:
        async def never(self: SimDriver, keys: Any) -> dict[Key, ProcessSeen]:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(SimDriver, "look", never)
        s.world.kill((UID, "demo-001"))
        await asyncio.sleep(1)
        assert not s.led_by("demo-002", "demo-003"), "unknown is not down"
        monkeypatch.setattr(SimDriver, "look", real)
        await s.soon(lambda: s.led_by("demo-002", "demo-003"), "failover", LATE_SECONDS + 1)

    tell(story)


def test_a_late_look_costs_one_deadline_and_not_one_each_time() -> None:
    async def story() -> None:
        loop, late, asked = asyncio.get_running_loop(), Late(), 0

        async def never() -> int:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()
            return 1

        async def now() -> int:
            return 2

        begun = loop.time()
        assert [await late.within(LOOK_DEADLINE_SECONDS, "front", never) for _ in range(5)] == [None] * 5
        assert loop.time() - begun == pytest.approx(LOOK_DEADLINE_SECONDS)
        assert asked == 1
        assert await late.within(LOOK_DEADLINE_SECONDS, "another", now) == 2
        await asyncio.sleep(LATE_SECONDS)
        assert await late.within(LOOK_DEADLINE_SECONDS, "front", now) == 2, "it was given up, and is asked anew"

    run(story())


def test_an_effect_that_is_not_confirmed_in_time_has_failed_and_can_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(s: Story) -> None:
        async def start(self: SimDriver, spec: ProcessSpec) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(SimDriver, "start", start)
        s.world.kill((UID, "demo-003"))

        async def failed() -> bool:
            told = await s.told()
            return told is not None and "demo-003 cannot be started: Start was not confirmed within 20 s" in told.because

        await s.soon(failed, "word of it", 30)

    tell(story)


def test_a_wait_with_figures_in_its_sentence_is_not_told_all_the_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A frozen primary without automatic failover, and a sentence that is another at every look. A keeper that was woken by its own
    word would go on as fast as it can."""
    real, figures = keeping.plan, itertools.count()
    looks = told = 0

    def plan(*asked: Any) -> Step:
        step = real(*asked)
        return replace(step, because=f"{step.because} ({next(figures)} s)") if isinstance(step, Wait) else step

    async def story(s: Story) -> None:
        await s._change(lambda wanted: replace(wanted, automatic_failover=False))
        s.world.freeze((UID, "demo-001"))
        await asyncio.sleep(2)
        monkeypatch.setattr(keeping, "plan", plan)
        publish, look = s.store.publish, Observer.look

        async def noted(*asked: Any) -> None:
            nonlocal told
            told += 1
            await publish(*asked)

        async def looked(self: Observer, cache: Cache) -> View:
            nonlocal looks
            looks += 1
            return await look(self, cache)

        monkeypatch.setattr(s.store, "publish", noted)
        monkeypatch.setattr(Observer, "look", looked)
        caplog.clear()
        await asyncio.sleep(10)

    with caplog.at_level(logging.INFO, "cachekeep.keeper"):
        tell(story)
    assert 5 <= looks <= 20
    assert 1 <= told <= 10 / keeping.FIGURES_SECONDS + 1
    assert len([line for line in caplog.messages if "is frozen" in line]) <= 1


def test_who_is_never_ready_is_told_of_by_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Creation goes on for ever: that is stated, and waited for as before."""
    ready = announce.ready
    story = Story(lambda s: asyncio.sleep(0))

    async def creating() -> None:
        monkeypatch.setattr(announce, "ready", lambda s, node: node.name != "demo-003" and ready(s, node))
        await story.store.open()
        await story._create()
        story.keepers = [story._keeper("keeper0")]
        try:
            await asyncio.sleep(CREATION_SECONDS + 5)
            told = await story.told()
            assert told is not None
            assert (told.status, told.refused) == ("creating", True)
            assert told.because.startswith("demo has been creating for more than 600 s: demo-001, demo-002 and demo-003")
            async with story.store.reading() as tx:
                events = [e.message for _, e in await tx.events(limit=100)]
            assert [e for e in events if "creating" in e] == [told.because]
            monkeypatch.setattr(announce, "ready", ready)
            await story.soon(story._healthy, "creation")

            async def calm() -> bool:
                told = await story.told()
                return told is not None and told.settled and not told.refused

            await story.soon(calm, "a calm word")
        finally:
            for task in (*story.keepers, *story.world.tasks):
                task.cancel()
            await asyncio.gather(*story.keepers, return_exceptions=True)

    run(creating())


def test_what_fails_for_ever_is_not_logged_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def start(self: SimDriver, spec: ProcessSpec) -> None:
        raise OrderFailed("there is no room for it")

    async def story(s: Story) -> None:
        monkeypatch.setattr(SimDriver, "start", start)
        s.world.kill((UID, "demo-003"))
        await asyncio.sleep(5)
        caplog.clear()
        await asyncio.sleep(60)
        told = await s.told()
        assert told is not None
        assert "demo-003 cannot be started: there is no room for it" in told.because

    with caplog.at_level(logging.INFO, "cachekeep.keeper"):
        tell(story)
    assert len(caplog.messages) <= 2


def test_what_cannot_be_is_told_and_nothing_rests_on_it() -> None:
    """A row that somebody has damaged: its nodes go on, the control plane does, and a mended row is gone on from."""

    async def damage(s: Story, **changes: Any) -> None:
        async with s.store.transaction() as tx:
            row = tx.state.caches[UID]
            (shard,) = row.decided.shards
            decided = replace(row.decided, serial=row.decided.serial + 1, shards=(replace(shard, **changes),))
            tx.state.caches[UID] = replace(row, decided=decided, version=row.version + 1)
            tx.wake(UID)

    async def story(s: Story) -> None:
        assert s.cache is not None
        order = s.cache.decided.shards[0].order
        await damage(s, order=0)

        async def confessed() -> bool:
            told = await s.told()
            return told is not None and told.refused and "cannot be: shard 0001: its primary leads by order 1" in told.because

        await s.soon(confessed, "word of it")
        s.world.kill((UID, "demo-001"))
        await asyncio.sleep(5)
        assert not s.led_by("demo-002", "demo-003"), "nothing is decided on such ground"
        await damage(s, order=order)
        await s.soon(lambda: s.led_by("demo-002", "demo-003"), "failover", keeping.LONGEST_BACKOFF_SECONDS)

    tell(story)
