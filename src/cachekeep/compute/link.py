"""The real ``Link``: looks and orders over one kept line per node, heartbeats on the same line."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.cluster_link import EngineClusterLink, pause
from cachekeep.compute.contract import Key, Memory, Target
from cachekeep.compute.line import Line, LineLost, Reply, ReplyError, resp
from cachekeep.compute.lines import Lines
from cachekeep.compute.looks import good, look_memcached, look_resp, text
from cachekeep.compute.pulse import Moments, Pulse
from cachekeep.compute.spares import Spares
from cachekeep.engines.launch import NOBODY_PORT
from cachekeep.engines.replies import DISCOVERY_KEY, excuse, info, reaches, stream
from cachekeep.errors import OrderFailed
from cachekeep.model import Excuse, Heard, Moment, NodeView, Silence

_ORDER_SECONDS = 5.0
"""Within this an order is confirmed, or it has failed."""
_LAST_WORD_SECONDS = 0.06
"""What a node that is silent already is given to answer a look; longer than its host may wait with an acknowledgement."""
_REACH_SECONDS = 0.15
"""Within this a replica's connection to its primary is taken, or its host is out of reach."""
_NEXT_TRY_SECONDS = 1.2
"""A replica that could not even try does so again within a second (the engines' ``replicationCron``)."""
_BIND_SECONDS = 0.3
"""An address that cannot be bound for longer belongs to somebody else."""
_SET_BIND = ("CONFIG", "SET", "bind")

_PROMOTE = ("REPLICAOF", "NO", "ONE")
_DROP = (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"))

Command = tuple[str, ...]


async def _nothing() -> None:
    """What is left to check of a taker that has caught up, usually."""


class EngineLink:
    """``cachekeep.compute.contract.Link`` over real engines.

    ``memory`` remembers order numbers: it is asked right before an order is sent, with no other order to that node on its way. It
    is told whatever a node says that it holds. ``spares`` holds spare lines; None: there are none.
    """

    def __init__(self, memory: Memory, clock: Clock, spares: Spares | None = None) -> None:
        self._memory = memory
        self._clock = clock
        self._lines = Lines(clock, self._lost, spares)
        self._looks: dict[Key, tuple[Target, asyncio.Task[NodeView]]] = {}
        """The last look at each node: one that is not answered yet is not asked again."""
        self._unkillable: set[Key] = set()
        """Nodes whose script has written, by their own word."""
        self._ordering: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._pulses: dict[Key, Pulse] = {}
        self._moments: Moments | None = None
        self.cluster = EngineClusterLink(
            order=self._order,
            guarded=self._orders,
            let_pass=self._let_pass,
            replication=self._replication,
            lines=self._lines,
            clock=clock,
        )

    # -- looking

    async def look(self, target: Target, *, deadline_seconds: float) -> NodeView:
        """One that owes an answer already, to a heartbeat, has had its time: it is not given the whole deadline again."""
        kept = self._lines.kept(target)
        owed_seconds = kept.silent_seconds if kept is not None else 0.0
        cut = kept is not None and owed_seconds > _LAST_WORD_SECONDS and kept.unacknowledged
        try:
            async with asyncio.timeout(max(deadline_seconds - owed_seconds, _LAST_WORD_SECONDS)):
                seen = await asyncio.shield(self._look(target))
        except LineLost as error:
            return NodeView(answer=Silence(), problem=str(error))
        except ReplyError as error:
            return self._excused(target, excuse(str(error)))
        except TimeoutError:
            line = self._lines.kept(target)
            if cut or (line is not None and line.unacknowledged):
                return self._silent(target, owed_seconds, deadline_seconds, reachable=False)
            knocked = await self._lines.knock(target)
            if knocked.excuse is not None:
                return self._excused(target, knocked.excuse)
            return self._silent(target, owed_seconds, deadline_seconds, reachable=line is not None or knocked.reachable)
        self._unkillable.discard(target.key)
        return seen

    def _silent(self, target: Target, owed_seconds: float, deadline_seconds: float, *, reachable: bool) -> NodeView:
        self._lines.give_up(target.key)
        return NodeView(answer=Silence(owed_seconds, reachable), problem=f"no answer within {deadline_seconds:g} s")

    def _excused(self, target: Target, said: Excuse) -> NodeView:
        if said.plight == "busy" and target.key in self._unkillable:
            said = replace(said, plight="unkillable")
        return NodeView(answer=said, problem=said.words)

    def _look(self, target: Target) -> asyncio.Task[NodeView]:
        """The look that is on its way, or a new one."""
        asked, task = self._looks.get(target.key, (None, None))
        if task is None or task.done() or asked != target:
            task = asyncio.create_task(self._look_anew(target))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting for it any more
            self._looks[target.key] = target, task
        return task

    async def _look_anew(self, target: Target) -> NodeView:
        kept = self._lines.kept(target)
        try:
            return await self._ask(await self._lines.open(target), target)
        except LineLost:
            if kept is None:
                raise
            return await self._ask(await self._lines.open(target), target)  # a line may be closed; is the engine there?

    async def _ask(self, line: Line, target: Target) -> NodeView:
        if target.engine == "memcached":
            return await look_memcached(line, target)
        asked_at = self._clock.moment()
        seen = await look_resp(line, target)
        if seen.stream is not None:
            self._memory.remember(target.key, Heard(asked_at, seen.stream))
        return replace(seen, cluster=await self.cluster.look(line, target)) if target.cluster_id else seen

    # -- orders

    async def promote(self, target: Target, *, order: int, addresses: tuple[str, ...]) -> None:
        async with self._orders(target):
            await self._lead(target, addresses, order)

    async def follow(self, target: Target, *, primary: Target, order: int) -> None:
        async with self._orders(target):
            self._let_pass(order, target)
            await self._order(target, _replicaof(primary.address, primary.port))

    async def witness(self, target: Target) -> None:
        async with self._orders(target):
            await self._order(target, ("CLIENT", "KILL", "TYPE", "master"))
            started = self._clock.monotonic()
            while True:
                (role,) = await self._order(target, ("ROLE",))
                patience = _REACH_SECONDS if reaches(role) is False else _NEXT_TRY_SECONDS
                if reaches(role) or self._clock.monotonic() > started + patience:
                    return
                await self._clock.sleep(0.005)

    async def admit(self, target: Target, *, primary: Target, order: int) -> None:
        """Told anew which primary to follow, it tries at once. In cluster mode it cannot be told, and tries within a second."""
        async with self._orders(target):
            self._let_pass(order, target)
            with _failures(primary):
                await self._lines.open(primary)
                async with self._lines.room(primary):
                    if not target.cluster_id:
                        again = (_replicaof(target.address, NOBODY_PORT), _replicaof(primary.address, primary.port))
                        await self._order(target, *again)
                    until = self._clock.monotonic() + _NEXT_TRY_SECONDS
                    while self._clock.monotonic() < until:
                        (role,) = await self._order(target, ("ROLE",))
                        if reaches(role):
                            return
                        await self._clock.sleep(0.005)
            raise OrderFailed(f"{target.key[1]} was not let in at {primary.key[1]}")

    async def interrupt(self, target: Target) -> None:
        """Of a script ``SCRIPT KILL`` speaks, of a function ``FUNCTION KILL``; each refuses what is the other's (BUSY)."""
        async with self._orders(target):
            with _failures(target):
                async with asyncio.timeout(_ORDER_SECONDS):
                    line = await self._lines.open(target)
                    replies = await line.ask(resp(("SCRIPT", "KILL"), ("FUNCTION", "KILL")), 2)
            if not any(reply == "OK" or str(reply).startswith("NOTBUSY") for reply in replies):
                self._unkillable.add(target.key)

    async def detach(self, target: Target, *, order: int) -> None:
        async with self._orders(target):
            self._let_pass(order, target)
            await self._order(target, _replicaof(target.address, NOBODY_PORT))

    async def bind(self, target: Target, addresses: tuple[str, ...]) -> None:
        async with self._orders(target):
            await self._order(target, _bind(addresses))

    async def drop_clients(self, target: Target) -> None:
        async with self._orders(target):
            await self._order(target, *_DROP)

    async def configure(self, target: Target, settings: Mapping[str, str]) -> None:
        async with self._orders(target):
            if not settings:
                return
            if target.engine == "memcached":
                for name, value in settings.items():
                    await self._tell_memcached(target, f"{name} {value}\r\n".encode(), expect="OK")
                return
            if _version(target) >= (7, 0):  # atomic since then
                await self._order(target, ("CONFIG", "SET", *(word for pair in settings.items() for word in pair)))
                return
            before = [await self._order(target, ("CONFIG", "GET", name)) for name in settings]
            done: list[Command] = []
            for (name, value), (old,) in zip(settings.items(), before, strict=True):
                try:
                    await self._order(target, ("CONFIG", "SET", name, value))
                except OrderFailed:
                    for undo in reversed(done):
                        await self._order(target, undo)
                    raise
                if isinstance(old, list) and len(old) == 2:
                    done.append(("CONFIG", "SET", name, text(old[1])))

    async def discover(self, target: Target, payload: str) -> None:
        data = payload.encode()
        command = b"set %b 0 0 %d\r\n%b\r\n" % (DISCOVERY_KEY.encode(), len(data), data)
        async with self._orders(target):
            await self._tell_memcached(target, command, expect="STORED")

    async def hand_over(
        self,
        giver: Target,
        taker: Target,
        *,
        order: int,
        giver_addresses: tuple[str, ...],
        taker_addresses: tuple[str, ...],
        timeout_seconds: float,
    ) -> None:
        async with self._orders(*sorted((giver, taker), key=lambda t: t.key)):
            self._let_pass(order, giver, taker)
            moved, held = await self._begin(giver, taker, giver_addresses, timeout_seconds)
            if moved:
                await self._order(giver, _bind(giver_addresses))
                await self._lead(taker, taker_addresses, order)
                await self._order(giver, _replicaof(taker.address, taker.port), *_DROP)
                return
            lead = partial(self._lead, taker, taker_addresses, order)
            await self._move(giver, taker, giver_addresses, timeout_seconds, held, lead=lead)
            await self._order(giver, _replicaof(taker.address, taker.port), ("CLIENT", "UNPAUSE"))

    async def convert(
        self, giver: Target, taker: Target, *, order: int, giver_addresses: tuple[str, ...], timeout_seconds: float
    ) -> None:
        async with self._orders(*sorted((giver, taker), key=lambda t: t.key)):
            moved, held = await self._begin(giver, taker, giver_addresses, timeout_seconds)
            # Only now: a taker that has seen this order and leads, leads because its giver has stepped down for it.
            self._let_pass(order, giver)
            self._let_pass(order, taker, leading=True)
            if moved:
                return

            async def has_all() -> None:
                if refused := await self.cluster.has_refused(taker):
                    raise OrderFailed(f"{taker.key[1]} has refused {refused} commands of what it was fed")

            lead = partial(self.cluster.take_all, taker)
            await self._move(giver, taker, giver_addresses, timeout_seconds, held, has_all=has_all, lead=lead)
            await self._order(giver, ("CLIENT", "UNPAUSE"))

    async def _begin(
        self, giver: Target, taker: Target, giver_addresses: tuple[str, ...], timeout_seconds: float
    ) -> tuple[bool, tuple[str, ...]]:
        """Whether only the rest of a move is to be done, and where the giver listens.
        Raises OrderFailed where nothing can be moved."""
        try:
            async with asyncio.timeout(timeout_seconds):
                moved = await self._already_moved(giver, taker)
                (bound,) = await self._order(giver, ("CONFIG", "GET", "bind"))
        except TimeoutError as error:
            raise OrderFailed(
                f"{giver.key[1]} or {taker.key[1]} did not answer within {timeout_seconds:g} s; {giver.key[1]} leads on"
            ) from error
        return moved, _bound(bound, giver_addresses)

    async def _already_moved(self, giver: Target, taker: Target) -> bool:
        """Whether only the rest of a hand-over is to be done. Raises OrderFailed where there is nothing to hand over."""
        gives, takes = await asyncio.gather(self._replication(giver), self._replication(taker))
        if gives["role"] == "slave" and takes["role"] == "master":
            return True
        if gives["role"] != "master":
            raise OrderFailed(f"{giver.key[1]} does not lead, so it cannot hand over")
        follows = (takes.get("master_host"), takes.get("master_port"), takes.get("master_link_status"))
        if follows != (giver.address, str(giver.port), "up"):
            raise OrderFailed(f"{taker.key[1]} does not follow {giver.key[1]}, so it cannot take over: {follows}")
        return False

    async def _move(
        self,
        giver: Target,
        taker: Target,
        giver_addresses: tuple[str, ...],
        timeout_seconds: float,
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
        stepped_down = sent = False
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._caught_up(giver, taker)  # whatever it lacks, clients need not wait for most of it
                await self._order(giver, pause(timeout_seconds))
                await self._caught_up(giver, taker)
                stepped_down = True
                await self._order(giver, _replicaof(giver.address, NOBODY_PORT), _bind(giver_addresses), *_DROP)
                await self._caught_up(giver, taker)
                await has_all()
                sent = True
                await lead()
        except (OrderFailed, TimeoutError) as error:
            reason = str(error) or f"{taker.key[1]} had not caught up within {timeout_seconds:g} s"
            if sent:
                raise OrderFailed(
                    f"{giver.key[1]} has stepped down; it is not known whether {taker.key[1]} leads: {reason}"
                ) from error
            back = (_PROMOTE, _bind(held)) if stepped_down else ()
            try:
                await self._order(giver, *back, ("CLIENT", "UNPAUSE"))
            except OrderFailed as second:
                raise OrderFailed(f"{reason}; and {second}") from error
            raise OrderFailed(f"{reason}; {giver.key[1]} leads on") from error

    async def _caught_up(self, giver: Target, taker: Target) -> None:
        """Wait until the taker has received all that the giver has written by now."""
        goal = _offset(await self._replication(giver))
        while True:
            seen = await self._replication(taker)
            if seen["role"] != "slave" or seen.get("master_host") != giver.address:
                raise OrderFailed(f"{taker.key[1]} no longer follows {giver.key[1]}")
            if _offset(seen) >= goal:
                return
            await self._clock.sleep(0.0005)

    async def _lead(self, target: Target, addresses: tuple[str, ...], order: int) -> None:
        """Promote and bind in one round trip; then the engine must say that it leads, and with what it begins."""
        self._let_pass(order, target, leading=True)
        asked_at = self._clock.moment()
        *_, said = await self._order(target, _PROMOTE, _bind(addresses), ("INFO", "replication"))
        if self._heard(target, said, asked_at)["role"] != "master":
            raise OrderFailed(f"{target.key[1]} was told to lead and does not")

    def _heard(self, target: Target, replication: Reply, asked_at: Moment) -> dict[str, str]:
        """The fields of an ``INFO replication`` reply; what it says of its stream is remembered."""
        assert isinstance(replication, bytes)
        if (held := stream(replication)) is not None:
            self._memory.remember(target.key, Heard(asked_at, held))
        return info(replication)

    # -- heartbeats

    def watch(self, target: Target, *, interval_seconds: float, deadline_seconds: float, wake: Callable[[Key], None]) -> None:
        terms = (target, interval_seconds, deadline_seconds, wake)
        old = self._pulses.get(target.key)
        if old is not None:
            if old.terms == terms:
                return  # asked for at every pass; begun anew, its first answer would wake for the next one, and so for ever
            old.stop()
        self._moments = self._moments or Moments()
        self._pulses[target.key] = Pulse(
            target,
            open_line=lambda: self._lines.open(target),
            give_up=lambda: self._lines.give_up(target.key),
            interval_seconds=interval_seconds,
            deadline_seconds=deadline_seconds,
            wake=wake,
            moments=self._moments,
            heard=lambda reply, asked_at: self._heard(target, reply, asked_at),
            clock=self._clock,
        )

    def unwatch(self, key: Key) -> None:
        pulse = self._pulses.pop(key, None)
        if pulse is not None:
            pulse.stop()
        self.cluster.forget(key)
        if key in self._looks:
            self._looks.pop(key)[1].cancel()
        self._unkillable.discard(key)
        self._lines.forget(key)

    async def aclose(self) -> None:
        for key in [*self._pulses, *self._looks]:
            self.unwatch(key)
        await self._lines.aclose()

    # -- lines

    def _lost(self, key: Key) -> None:
        if key in self._pulses:
            self._pulses[key].lost()

    @contextlib.asynccontextmanager
    async def _orders(self, *targets: Target) -> AsyncIterator[None]:
        """One order at a time to each node."""
        async with contextlib.AsyncExitStack() as stack:
            for target in targets:
                await stack.enter_async_context(self._ordering[target.key])
            yield

    def _let_pass(self, order: int, *targets: Target, leading: bool = False) -> None:
        for target in targets:
            if target.engine == "memcached":
                raise OrderFailed(f"{target.key[1]}: Memcached has no replication")
            if not self._memory.admit(target.key, order, leading=leading):
                raise OrderFailed(f"{target.key[1]} has seen a later order than {order}")

    async def _order(self, target: Target, *commands: Command) -> list[Reply]:
        """Send commands in one go; every reply must be good. Raises OrderFailed in the engine's words."""
        if target.engine == "memcached":
            raise OrderFailed(f"{target.key[1]}: Memcached cannot be told {commands[0][0]}")
        with _failures(target):
            async with asyncio.timeout(_ORDER_SECONDS):
                line = await self._lines.open(target)
                replies = await line.ask(resp(*commands), len(commands))
                for at, command in enumerate(commands):
                    if command[:3] == _SET_BIND and isinstance(replies[at], ReplyError):
                        replies[at] = await self._bind_again(line, command)
            return good(replies)

    async def _tell_memcached(self, target: Target, command: bytes, *, expect: str) -> None:
        with _failures(target):
            async with asyncio.timeout(_ORDER_SECONDS):
                (reply,) = await (await self._lines.open(target)).ask(command, 1)
        if reply != expect:
            raise OrderFailed(f"{target.key[1]} did not heed {command.split()[0].decode()}: {reply}")

    async def _bind_again(self, line: Line, command: Command) -> Reply:
        """An engine that has just forked (to feed a replica) shares its listening sockets with the child for a moment, so it cannot
        bind them anew; then it fails to go back to the old ones, too, and listens nowhere, whatever ``CONFIG GET bind`` says."""
        until = self._clock.monotonic() + _BIND_SECONDS
        while True:
            await self._clock.sleep(0.003)
            (reply,) = await line.ask(resp(command), 1)
            if not isinstance(reply, ReplyError) or self._clock.monotonic() > until:
                return reply

    async def _replication(self, target: Target) -> dict[str, str]:
        asked_at = self._clock.moment()
        (reply,) = await self._order(target, ("INFO", "replication"))
        return self._heard(target, reply, asked_at)


def _replicaof(address: str, port: int) -> Command:
    return ("REPLICAOF", address, str(port))


def _bind(addresses: tuple[str, ...]) -> Command:
    return (*_SET_BIND, " ".join(addresses))


def _bound(reply: Reply, default: tuple[str, ...]) -> tuple[str, ...]:
    """Of ``CONFIG GET bind``."""
    return tuple(text(reply[1]).split()) if isinstance(reply, list) and len(reply) == 2 else default


def _offset(fields: Mapping[str, str]) -> int:
    """A replica's own count of what it has; for a primary, and for one that has just stepped down, of what it wrote.

    Both are the same number in the same history, and each role reports it by another name.
    """
    return max(int(fields.get("slave_repl_offset", fields["master_repl_offset"])), 0)


def _version(target: Target) -> tuple[int, ...]:
    return tuple(int(part) for part in target.version.split(".")[:2])


@contextlib.contextmanager
def _failures(target: Target) -> Iterator[None]:
    """Whatever went wrong on the line, as an order that failed."""
    try:
        yield
    except (LineLost, ReplyError) as error:
        raise OrderFailed(f"{target.key[1]}: {error}") from error
    except TimeoutError as error:
        raise OrderFailed(f"{target.key[1]} did not answer within {_ORDER_SECONDS:g} s") from error
