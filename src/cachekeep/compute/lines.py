"""The lines to all nodes: one kept open to each, private ones for long work, and a knock at the door of one that is silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec

from cachekeep.clock import Clock
from cachekeep.compute.contract import Key, Target
from cachekeep.compute.line import Line, LineLost, ReplyError, connect, dial, greeted, line_over, parse_memcached, parse_resp, resp
from cachekeep.compute.logins import log_in
from cachekeep.compute.spares import Spares
from cachekeep.engines.launch import NOBODY_PORT
from cachekeep.engines.replies import excuse
from cachekeep.model import Excuse
from cachekeep.model.traits import traits

_CONNECT_SECONDS = 0.5
"""Within this a host takes a connection of ours, or it is tried anew."""
_KNOCK_SECONDS = 0.1
"""Within this an engine whose event loop turns answers a newcomer, and a host that is there one who is not expected."""
_HOPELESS_SECONDS = 5.0
"""A line that owes a reply for this long is given up and opened anew: the machine at its end may be gone."""
_PROVIDE_SECONDS = 5.0
"""So often it is seen to that there is a spare line."""
_WAITING = "cachekeep"
"""The channel on which spare lines listen."""
_ROOM = 64
"""So many connections an engine takes for a moment on top of what it may. They need descriptors (``config.ENGINES_OWN_FILES``)."""
_VERSION = b"version\r\n"
_NONSENSE = resp(("CACHEKEEP.KNOCK",))
"""What no engine knows is answered at once, also while every command is held back (CLIENT PAUSE … ALL)."""


T = TypeVar("T")


class Knocked(msgspec.Struct, frozen=True):
    """What came of knocking at the door of an engine that is silent."""

    excuse: Excuse | None
    """It turns its event loop, and why it does not answer all the same."""
    reachable: bool
    """Its host is there."""


class Lines:
    """Lines to engines, by key. ``on_lost`` hears of a kept line that was lost."""

    def __init__(self, clock: Clock, on_lost: Callable[[Key], None], spares: Spares | None) -> None:
        self._clock, self._on_lost, self._spares = clock, on_lost, spares
        self._targets: dict[Key, Target] = {}
        """Those to which there is to be a spare line."""
        self._keeping: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._lines: dict[Key, tuple[str, int, Line]] = {}
        self._opening: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._making_room: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._knocked_at: dict[Key, float] = {}
        """When a knock was last answered."""

    async def open(self, target: Target) -> Line:
        """The kept line to a node, opened if it is not. Raises LineLost, or ReplyError where we are refused."""
        kept = self.kept(target)
        if kept is not None:
            return kept
        async with self._opening[target.key]:
            kept = self.kept(target)
            if kept is not None:
                return kept
            self.hang_up(target.key)
            try:
                line = await _open(target, lambda: self._on_lost(target.key))
            except ReplyError as error:
                spare = await self._spare(target) if excuse(str(error)).plight == "crowded" else None
                if spare is None:
                    raise
                line = spare
            self._lines[target.key] = (target.address, target.port, line)
            if self._spares is not None and traits(target.engine).replicates:
                self._targets[target.key] = target
                self._keeping = self._keeping or asyncio.get_running_loop().create_task(self._keep_spares(self._spares))
                self._more.set()
            return line

    async def _spare(self, target: Target) -> Line | None:
        """The spare line to a node, as one that is kept. Whatever it may still hold is read up to our own word."""
        sock = await asyncio.to_thread(self._spares.take, _name(target)) if self._spares is not None else None
        if sock is None:
            return None
        line: Line | None = None
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                if target.trust:
                    line = await line_over(sock, parse_resp, lambda: self._on_lost(target.key), trust=target.trust)
                    return await greeted(line, resp(log_in(target)))
                line = await line_over(sock, parse_resp, lambda: self._on_lost(target.key))
                _, word = await line.ask(resp(("UNSUBSCRIBE", _WAITING), ("ECHO", _WAITING)), 2)
            if word == _WAITING.encode():
                return line
        except (LineLost, ReplyError, TimeoutError):
            pass
        if line is not None:
            line.close()
        return None

    async def _keep_spares(self, spares: Spares) -> None:
        """See to it that there is a spare line to each node to which one is kept: clients may close it, moves of the lead do."""
        while True:
            for target in [*self._targets.values()]:
                if self.kept(target) is not None:
                    await self._provide(spares, target)
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROVIDE_SECONDS):
                    await self._more.wait()

    async def _provide(self, spares: Spares, target: Target) -> None:
        with contextlib.suppress(LineLost, ReplyError, OSError, TimeoutError):
            if await asyncio.to_thread(spares.has, _name(target)):
                return
            # Who listens is not idle, so a parameter group's ``timeout`` leaves it alone. TLS is between two processes, so nothing
            # is said by it before the next one has the connection: it has been let in all the same.
            greetings = () if target.trust else (resp(log_in(target)), resp(("SUBSCRIBE", _WAITING)))
            async with asyncio.timeout(_CONNECT_SECONDS), contextlib.AsyncExitStack() as while_there_is_room:
                if target.trust:  # whether it was let in would show only then
                    await while_there_is_room.enter_async_context(self.room(target))
                sock = await self._admitted(target, lambda: dial(target.address, target.port, parse_resp, *greetings, secret=True))
            with sock:
                await asyncio.to_thread(spares.put, _name(target), sock)

    def forget(self, key: Key) -> None:
        """Close the kept line to a node that is of no interest any more. The spare one ends with its engine."""
        self.hang_up(key)
        self._targets.pop(key, None)

    async def aclose(self) -> None:
        """Close every kept line. Spare ones stay."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        for key in [*self._lines]:
            self.hang_up(key)

    def kept(self, target: Target) -> Line | None:
        """The kept line to a node, if it is open."""
        address, port, line = self._lines.get(target.key, ("", 0, None))
        return line if line is not None and line.open and (address, port) == (target.address, target.port) else None

    @contextlib.asynccontextmanager
    async def room(self, target: Target) -> AsyncIterator[None]:
        """Let the engine take some more connections than it may, for a moment, by the kept line. Those that others get of them are
        theirs to keep. Whoever's host has connected before the moment ends is let in: its kernel says so before the engine has
        accepted the connection, and an engine accepts what waits in the turn in which it answers at the latest. Raises LineLost,
        or ReplyError where it cannot be had, or without a kept line."""
        line = self.kept(target)
        if line is None:
            raise LineLost("there is no line to make room by")
        async with self._making_room[target.key]:
            (told,) = await line.ask(resp(("CONFIG", "GET", "maxclients")), 1)
            if not isinstance(told, list) or len(told) != 2:
                raise told if isinstance(told, ReplyError) else ReplyError(f"CONFIG GET maxclients: {told!r}")
            most = int(told[1])
            try:
                (told,) = await line.ask(resp(("CONFIG", "SET", "maxclients", str(most + _ROOM))), 1)
                if isinstance(told, ReplyError):
                    raise told
                yield
            finally:
                with contextlib.suppress(LineLost):  # then whoever looks next finds the setting astray
                    await line.ask(resp(("PING",)), 1)
                    await line.ask(resp(("CONFIG", "SET", "maxclients", str(most))), 1)

    async def _admitted(self, target: Target, enter: Callable[[], Awaitable[T]]) -> T:
        """What comes of connecting; room is made where there is none."""
        try:
            return await enter()
        except ReplyError as error:
            if excuse(str(error)).plight != "crowded" or not traits(target.engine).replicates or self.kept(target) is None:
                raise
        async with self.room(target):
            return await enter()

    @contextlib.asynccontextmanager
    async def private(self, target: Target, number: int) -> AsyncIterator[list[Line]]:
        """Lines of one's own: looks and heartbeats do not wait behind what is done over them."""
        lines: list[Line] = []

        async def one_more() -> None:
            lines.append(await self._admitted(target, lambda: _open(target)))

        try:
            await one_more()  # alone: whether there is room shows once
            opened = await asyncio.gather(*(one_more() for _ in range(number - 1)), return_exceptions=True)
            for error in filter(None, opened):
                raise error
            yield lines
        finally:
            for line in lines:
                line.close()

    async def knock(self, target: Target) -> Knocked:
        """Try a newcomer's luck with an engine that is silent: it may only be holding back what it was asked."""
        there, told = await asyncio.gather(_is_there(target), _answers(target))
        if told is not None:
            self._knocked_at[target.key] = self._clock.monotonic()
        return Knocked(told, there or told is not None)

    def hang_up(self, key: Key) -> None:
        """Close the kept line."""
        _, _, line = self._lines.pop(key, ("", 0, None))
        if line is not None:
            line.close()

    def give_up(self, key: Key) -> None:
        """Close the kept line if it is hopeless: not while the engine is there and holds back its answers, or we might not get in
        again."""
        _, _, line = self._lines.get(key, ("", 0, None))
        alive = self._clock.monotonic() - self._knocked_at.get(key, -_HOPELESS_SECONDS) < _HOPELESS_SECONDS
        if line is not None and line.silent_seconds > _HOPELESS_SECONDS and not alive:
            self.hang_up(key)


def _name(target: Target) -> str:
    """By which a spare line is known."""
    return f"{'/'.join(target.key)} {target.address}:{target.port}"


async def _open(target: Target, on_lost: Callable[[], None] | None = None) -> Line:
    memcached = traits(target.engine).speaks == "memcached"
    greeting = _VERSION if memcached else resp(log_in(target))
    try:
        # A lost host answers nothing, and when it is back, the kernel's next try may be a minute away.
        async with asyncio.timeout(_CONNECT_SECONDS):
            parse = parse_memcached if memcached else parse_resp
            return await connect(
                target.address, target.port, parse, on_lost, greeting=greeting, secret=not memcached, trust=target.trust
            )
    except TimeoutError as error:
        raise LineLost(f"no connection within {_CONNECT_SECONDS:g} s") from error


async def _answers(target: Target) -> Excuse | None:
    """What it says to nonsense; None if it says nothing. Memcached holds nothing back."""
    if not traits(target.engine).replicates:
        return None
    try:
        async with asyncio.timeout(_KNOCK_SECONDS):
            line = await connect(target.address, target.port, parse_resp, greeting=_NONSENSE, trust=target.trust)
            line.close()
    except ReplyError as error:
        said = excuse(str(error))
        return said if said.plight in ("crowded", "loading") else Excuse("paused", str(error))
    except (LineLost, TimeoutError):
        pass
    return None


async def _is_there(target: Target) -> bool:
    """Whether its host refuses a connection where nobody listens. That the engine's own port takes none says nothing: so many may
    be waiting there that the kernel takes no more, which looks like a host that is gone."""
    try:
        async with asyncio.timeout(_KNOCK_SECONDS):
            line = await connect(target.address, NOBODY_PORT, parse_resp)
            line.close()
    except LineLost as error:
        return isinstance(error.__cause__, ConnectionRefusedError)
    except TimeoutError:
        return False
    return True
