"""Moves of the lead while the giver's clients are paused, so that no write is lost: to a replica (``HandOver``), to a successor in
cluster mode (``Convert``), within a shard of a cluster (``Swap``)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from cachekeep.clock import Clock
from cachekeep.compute.beliefs import Beliefs
from cachekeep.compute.commands import Command, Commands, replicaof, set_bind
from cachekeep.compute.contract import Target, Targets
from cachekeep.compute.line import Reply, text
from cachekeep.compute.orders import DROP, LEAD, Orders
from cachekeep.engines.launch import NOBODY_PORT
from cachekeep.engines.replies import refused
from cachekeep.errors import OrderFailed
from cachekeep.model import Convert, HandOver, Swap

_POLL_SECONDS = 0.002
_UNPAUSE = ("CLIENT", "UNPAUSE")
_TAKE_OVER = ("CLUSTER", "FAILOVER", "TAKEOVER")


async def _nothing() -> None:
    """What is left to check of a taker that has caught up, usually."""


class PausedMoves:
    """Each method carries out the effect of its name."""

    def __init__(self, commands: Commands, beliefs: Beliefs, orders: Orders, clock: Clock) -> None:
        self._commands, self._beliefs, self._orders, self._clock = commands, beliefs, orders, clock

    async def hand_over(self, effect: HandOver, at: Targets) -> None:
        """On failure the giver leads on and its clients are served again."""
        giver, taker, order = at[effect.giver], at[effect.taker], effect.order
        async with self._commands.one_at_a_time(giver, taker):
            await self._commands.let_pass(order, giver, taker)
            moved, held = await self._begin(giver, taker, effect)
            if moved:
                await self._commands.send(giver, set_bind(effect.giver_addresses))
                await self._orders.lead(taker, effect.taker_addresses, order)
                await self._commands.send(giver, replicaof(taker.address, taker.port), *DROP)
                return
            lead = partial(self._orders.lead, taker, effect.taker_addresses, order)
            await self._move(giver, taker, effect, held, lead=lead)
            await self._commands.send(giver, replicaof(taker.address, taker.port), _UNPAUSE)

    async def convert(self, effect: Convert, at: Targets) -> None:
        """On failure before the taker is told to lead, the giver leads on and its clients are served again."""
        giver, taker, order = at[effect.giver], at[effect.taker], effect.order
        async with self._commands.one_at_a_time(giver, taker):
            moved, held = await self._begin(giver, taker, effect)
            # Only now: a taker that has seen this order and leads, leads because its giver has stepped down for it.
            await self._commands.let_pass(order, giver)
            await self._commands.let_pass(order, taker, leading=True)
            if moved:
                return
            lead, has_all = partial(self._take_all, taker), partial(self._has_refused_nothing, taker)
            await self._move(giver, taker, effect, held, has_all=has_all, lead=lead)
            await self._commands.send(giver, _UNPAUSE)

    async def _begin(self, giver: Target, taker: Target, effect: HandOver | Convert) -> tuple[bool, tuple[str, ...]]:
        """Whether only the rest of a move is to be done, and where the giver listens.
        Raises OrderFailed where nothing can be moved."""
        async with _in_time(giver, taker, effect.timeout_seconds):
            moved = await self._already_moved(giver, taker)
            (bound,) = await self._commands.send(giver, ("CONFIG", "GET", "bind"))
        return moved, _bound(bound, effect.giver_addresses)

    async def _already_moved(self, giver: Target, taker: Target) -> bool:
        """Whether only the rest of a move is to be done. Raises OrderFailed where there is nothing to hand over."""
        gives, takes = await asyncio.gather(self._commands.replication(giver), self._commands.replication(taker))
        if gives["role"] == "slave" and takes["role"] == "master":
            return True
        if gives["role"] != "master":
            raise OrderFailed(f"{giver.name} does not lead, so it cannot hand over")
        follows = (takes.get("master_host"), takes.get("master_port"), takes.get("master_link_status"))
        if follows != (giver.address, str(giver.port), "up"):
            raise OrderFailed(f"{taker.name} does not follow {giver.name}, so it cannot take over: {follows}")
        return False

    async def _move(
        self,
        giver: Target,
        taker: Target,
        effect: HandOver | Convert,
        held: tuple[str, ...],
        *,
        lead: Callable[[], Awaitable[None]],
        has_all: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """Up to the point where the taker leads. Nothing acknowledged is lost, whoever stalls for how long.

        The pause only keeps clients waiting instead of failing; what makes the move safe is that the giver follows *nobody* before
        its final offset is read: from then on it takes no write, yet goes on feeding the taker what it had. Only when the taker has
        that, it is promoted. Were the giver told to follow the taker at once, it might drop what the taker still lacks.
        """
        caught_up = partial(self._commands.caught_up, giver, taker)
        stepped_down = sent = False
        try:
            async with asyncio.timeout(effect.timeout_seconds):
                await caught_up()  # whatever it lacks, clients need not wait for most of it
                await self._commands.send(giver, _pause(effect.timeout_seconds))
                await caught_up()
                stepped_down = True
                await self._commands.send(giver, replicaof(giver.address, NOBODY_PORT), set_bind(effect.giver_addresses), *DROP)
                await caught_up()
                await has_all()
                sent = True
                await lead()
        except (OrderFailed, TimeoutError) as error:
            reason = str(error) or f"{taker.name} had not caught up within {effect.timeout_seconds:g} s"
            if sent:
                raise OrderFailed(f"{giver.name} has stepped down; it is not known whether {taker.name} leads: {reason}") from error
            back = (LEAD, set_bind(held)) if stepped_down else ()
            try:
                await self._commands.send(giver, *back, _UNPAUSE)
            except OrderFailed as second:
                raise OrderFailed(f"{reason}; and {second}") from error
            raise OrderFailed(f"{reason}; {giver.name} leads on") from error

    async def _has_refused_nothing(self, target: Target) -> None:
        """Of its primary's stream."""
        (stats,) = await self._commands.send(target, ("INFO", "stats"))
        assert isinstance(stats, bytes)
        if number := refused(stats):
            raise OrderFailed(f"{target.name} has refused {number} commands of what it was fed")

    async def _take_all(self, target: Target) -> None:
        """Have a replica take all slots of a primary that is not in cluster mode; confirmed when it serves."""
        await self._commands.send(target, _TAKE_OVER)
        while (await self._commands.replication(target))["role"] != "master" or not (await self._beliefs.of(target)).ok:
            await self._clock.sleep(_POLL_SECONDS)

    async def swap(self, effect: Swap, at: Targets) -> None:
        """On failure before the takeover, the giver leads on and its clients are served again. No vote is asked for: a graceful
        failover by the engine needs one, is refused for 30 s after the last in its shard, and then lets writes wait for seconds.
        Here the giver is paused before and until it has seen that it no longer leads."""
        giver, taker, timeout_seconds = at[effect.giver], at[effect.taker], effect.timeout_seconds
        async with self._commands.one_at_a_time(giver, taker):
            await self._commands.let_pass(effect.order, giver, taker)
            async with _in_time(giver, taker, timeout_seconds):
                moved = await self._already_moved(giver, taker)
            if moved:
                return
            try:
                async with asyncio.timeout(timeout_seconds * 0.8):
                    await self._commands.caught_up(giver, taker)
                    await self._agreed(giver, taker)
                    await self._commands.send(giver, _pause(timeout_seconds))
                    await self._commands.caught_up(giver, taker)
                    await self._agreed(giver, taker)
            except (TimeoutError, OrderFailed) as error:
                await self._commands.send(giver, _UNPAUSE)
                raise OrderFailed(f"{str(error) or 'it did not catch up in time'}; {giver.name} leads on") from error
            await self._commands.send(giver, _pause(timeout_seconds))  # the full time, from now
            await self._commands.let_pass(effect.order, taker, leading=True)
            try:
                async with asyncio.timeout(timeout_seconds * 0.4):  # then it is stopped for certain, while the giver is paused
                    await self._commands.send(taker, _TAKE_OVER)
            except TimeoutError:
                await self._commands.send(giver, _pause(2 * timeout_seconds))
                raise OrderFailed(f"{taker.name} was told to take over, and does not answer") from None
            try:
                async with asyncio.timeout(timeout_seconds * 0.5):
                    while (await self._commands.replication(giver))["role"] == "master" and (await self._beliefs.of(giver)).slots:
                        await self._clock.sleep(_POLL_SECONDS / 4)
            except TimeoutError:
                await self._commands.send(giver, _pause(2 * timeout_seconds))  # until it is stopped for certain
                raise OrderFailed(f"{taker.name} has taken over, but {giver.name} has not heard of it") from None
            await self._commands.send(giver, _UNPAUSE)
            await self._orders.become_replica(giver, taker)

    async def _agreed(self, giver: Target, taker: Target) -> None:
        """The taker takes what *it* believes the giver to own: less, and the giver goes on leading; more, and it is another's."""
        while (await self._beliefs.of(giver)).slots != (await self._beliefs.of(taker)).inherits:
            await self._clock.sleep(_POLL_SECONDS)


@contextlib.asynccontextmanager
async def _in_time(giver: Target, taker: Target, seconds: float) -> AsyncIterator[None]:
    """What is asked before anything is changed. Raises OrderFailed when it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        late = f"{giver.name} or {taker.name} did not answer within {seconds:g} s"
        raise OrderFailed(f"{late}; {giver.name} leads on") from error


def _pause(seconds: float) -> Command:
    """Have a node's clients wait with their writes for so long, or until it is unpaused."""
    return ("CLIENT", "PAUSE", str(int(seconds * 1000)), "WRITE")


def _bound(reply: Reply, default: tuple[str, ...]) -> tuple[str, ...]:
    """Of ``CONFIG GET bind``."""
    return tuple(text(reply[1]).split()) if isinstance(reply, list) and len(reply) == 2 else default
