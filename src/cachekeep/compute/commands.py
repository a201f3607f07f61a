"""Commands to engines over the kept lines: what all orders have in common. One order at a time to a node, older ones refused, every
reply good, and whatever a node says that it holds remembered."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping

from cachekeep.clock import Clock
from cachekeep.compute.contract import Key, Memory, Target
from cachekeep.compute.line import Line, LineLost, Reply, ReplyError, good, resp
from cachekeep.compute.lines import Lines
from cachekeep.engines.replies import info, stream
from cachekeep.errors import OrderFailed
from cachekeep.model import Heard, Moment
from cachekeep.model.traits import traits

Command = tuple[str, ...]

ORDER_SECONDS = 5.0
"""Within this an order is confirmed, or it has failed."""
_BIND_SECONDS = 0.3
"""An address that cannot be bound for longer belongs to somebody else."""
_SET_BIND = ("CONFIG", "SET", "bind")
_POLL_SECONDS = 0.0005


class Commands:
    """``memory`` remembers order numbers: it is asked right before an order is sent, with no other order to that node on its
    way."""

    def __init__(self, memory: Memory, lines: Lines, clock: Clock) -> None:
        self._memory, self._lines, self._clock = memory, lines, clock
        self._ordering: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextlib.asynccontextmanager
    async def one_at_a_time(self, *targets: Target) -> AsyncIterator[None]:
        """No other order to these nodes meanwhile."""
        async with contextlib.AsyncExitStack() as stack:
            for target in sorted(targets, key=lambda t: t.key):
                await stack.enter_async_context(self._ordering[target.key])
            yield

    async def let_pass(self, order: int, *targets: Target, leading: bool = False) -> None:
        """Raises OrderFailed for a node that has seen a later order. ``leading``: it is an order to lead."""
        for target in targets:
            if not traits(target.engine).replicates:
                raise OrderFailed(f"{target.name}: {target.engine.title()} has no replication")
            if not await self._memory.admit(target.key, order, leading=leading):
                raise OrderFailed(f"{target.name} has seen a later order than {order}")

    async def send(self, target: Target, *commands: Command) -> list[Reply]:
        """Send commands in one go; every reply must be good. Raises OrderFailed in the engine's words."""
        if traits(target.engine).speaks != "resp":
            raise OrderFailed(f"{target.name}: {target.engine.title()} cannot be told {commands[0][0]}")
        with failures(target):
            async with asyncio.timeout(ORDER_SECONDS):
                line = await self._lines.open(target)
                replies = await line.ask(resp(*commands), len(commands))
                for at, command in enumerate(commands):
                    if command[:3] == _SET_BIND and isinstance(replies[at], ReplyError):
                        replies[at] = await self._bind_again(line, command)
            return good(replies)

    async def _bind_again(self, line: Line, command: Command) -> Reply:
        """An engine that has just forked (to feed a replica) shares its listening sockets with the child for a moment, so it cannot
        bind them anew; then it fails to go back to the old ones, too, and listens nowhere, whatever ``CONFIG GET bind`` says."""
        until = self._clock.monotonic() + _BIND_SECONDS
        while True:
            await self._clock.sleep(0.003)
            (reply,) = await line.ask(resp(command), 1)
            if not isinstance(reply, ReplyError) or self._clock.monotonic() > until:
                return reply

    async def send_memcached(self, target: Target, command: bytes, *, expect: str) -> None:
        """Send one command to a Memcached server. Raises OrderFailed for any other reply than ``expect``."""
        with failures(target):
            async with asyncio.timeout(ORDER_SECONDS):
                (reply,) = await (await self._lines.open(target)).ask(command, 1)
        if reply != expect:
            raise OrderFailed(f"{target.name} did not heed {command.split()[0].decode()}: {reply}")

    async def replication(self, target: Target, *first: Command) -> dict[str, str]:
        """The fields of ``INFO replication``, asked in one go with what is to be done ``first``."""
        asked_at = self._clock.moment()
        *_, reply = await self.send(target, *first, ("INFO", "replication"))
        return self.heard(target, reply, asked_at)

    def heard(self, target: Target, replication: Reply, asked_at: Moment) -> dict[str, str]:
        """The fields of an ``INFO replication`` reply; what it says of its stream is remembered."""
        assert isinstance(replication, bytes)
        if (held := stream(replication)) is not None:
            self._memory.remember(target.key, Heard(asked_at, held))
        return info(replication)

    async def caught_up(self, giver: Target, taker: Target) -> None:
        """Wait until the taker has received all that the giver has written by now. Raises OrderFailed if it follows another."""
        goal = offset(await self.replication(giver))
        while True:
            seen = await self.replication(taker)
            if seen["role"] != "slave" or seen.get("master_host") != giver.address:
                raise OrderFailed(f"{taker.name} no longer follows {giver.name}")
            if offset(seen) >= goal:
                return
            await self._clock.sleep(_POLL_SECONDS)


def set_bind(addresses: tuple[str, ...]) -> Command:
    """Have a node listen on exactly these addresses."""
    return (*_SET_BIND, " ".join(addresses))


def replicaof(address: str, port: int) -> Command:
    """Have a node follow whoever is there."""
    return ("REPLICAOF", address, str(port))


def offset(fields: Mapping[str, str]) -> int:
    """A replica's own count of what it has; for a primary, and for one that has just stepped down, of what it wrote.

    Both are the same number in the same history, and each role reports it by another name.
    """
    return max(int(fields.get("slave_repl_offset", fields["master_repl_offset"])), 0)


@contextlib.contextmanager
def failures(target: Target) -> Iterator[None]:
    """Whatever goes wrong on the line, as an order that failed."""
    try:
        yield
    except (LineLost, ReplyError) as error:
        raise OrderFailed(f"{target.name}: {error}") from error
    except TimeoutError as error:
        raise OrderFailed(f"{target.name} did not answer within {ORDER_SECONDS:g} s") from error


@contextlib.contextmanager
def but_for(words: str) -> Iterator[None]:
    """An order that fails in these words, because its effect is there already, has succeeded."""
    try:
        yield
    except OrderFailed as error:
        if words not in str(error):
            raise
