"""Orders of cluster mode to real engines: elections, introductions, and moves of slots while both sides serve.

Two ways to move slots. Valkey 9 and later do it themselves (``CLUSTER MIGRATESLOTS``: a snapshot, a stream, an instant of pause).
Elsewhere keys go by ``MIGRATE``, slot by slot as the engines' own tool does it, but with many slots open at once and commands
pipelined, so that neither side waits for a round trip to us.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.contract import Key, Target
from cachekeep.compute.line import Line, LineLost, Reply, ReplyError, resp
from cachekeep.compute.lines import Lines
from cachekeep.engines.catalogue import capabilities_of
from cachekeep.engines.launch import ADMIN
from cachekeep.engines.replies import cluster_seen, refused
from cachekeep.errors import OrderFailed
from cachekeep.model import ClusterSeen, SlotRange
from cachekeep.plan.slots import Ranges, common, compact, count, union

Command = tuple[str, ...]
Order = Callable[..., Awaitable[list[Reply]]]

_ELECTION_SECONDS = 0.5
"""An election that was started is watched for so long; what comes of it later is seen by looking."""
_POLL_SECONDS = 0.002
_MEETING_SECONDS = 0.2
"""A handshake takes one or two turns of an engine's clock, which comes ten times a second."""
_GOSSIP_SECONDS = 2.0
"""The engines tell each other what they own at least this often."""
_BELIEF_SECONDS = 5.0
"""What a node believes of the others is asked again after this long even if nothing hints at a change."""
_OPEN_SLOTS, _OPEN_KEYS = 128, 4_000
"""So many slots are half open at a time, and no more than hold so many keys together. While a slot is half open, clients are sent
from one side to the other and back; few slots at a time, each for a few milliseconds, keep that rare."""
_SETSLOT_LINES = 32
_KNOWN_SHARE = 32
"""A target may have one slot half open for so many that it owns. Some clients (valkey-py, redis-py) fail when they are sent by ASK
to a node that they have never heard of; MOVED introduces it to them. So a client that meets a new shard meets it by MOVED, 32 times
to one."""
_MIGRATE_KEYS = 100
"""In one MIGRATE, and in all that are sent ahead together. A source serves nobody while it carries one out, and takes up those that
it has received before it turns to others: more is faster, and slower for clients."""
_MIGRATE_TIMEOUT_SECONDS = 15
_JOB_KEYS = 600_000
"""In one job of an engine that moves slots whole, at most.
When it is done the source deletes them and serves nobody meanwhile, half a second for so many."""
_COUNT_SLOTS, _LISTED_KEYS = 512, 1000
_LINE_SECONDS = 20.0


class Guarded(Protocol):
    """One order at a time to each of these nodes."""

    def __call__(self, *targets: Target) -> contextlib.AbstractAsyncContextManager[None]: ...


class EngineClusterLink:
    """``compute.contract.ClusterLink`` over the lines of an ``EngineLink``:
    its ways to order, guard and let pass are lent to it."""

    def __init__(
        self,
        *,
        order: Order,
        guarded: Guarded,
        let_pass: Callable[..., None],
        replication: Callable[[Target], Awaitable[Mapping[str, str]]],
        lines: Lines,
        clock: Clock,
    ) -> None:
        self._order, self._guarded, self._let_pass, self._replication = order, guarded, let_pass, replication
        self._lines, self._clock = lines, clock
        self._beliefs: dict[Key, tuple[bytes, float, ClusterSeen]] = {}

    # -- looking

    async def look(self, line: Line, target: Target) -> ClusterSeen:
        """What the node believes. The long answer is asked for only when the short one is new. Raises LineLost, ReplyError."""
        seen = await self._look(line, target)
        if not target.fed_from_outside:
            return seen
        (stats,) = await line.ask(resp(("INFO", "stats")), 1)
        return replace(seen, refused=refused(stats) if isinstance(stats, bytes) else 1)

    async def _look(self, line: Line, target: Target) -> ClusterSeen:
        (short,) = await line.ask(resp(("CLUSTER", "INFO")), 1)
        if not isinstance(short, bytes):
            raise short if isinstance(short, ReplyError) else ReplyError(f"CLUSTER INFO: {short!r}")
        hint = b"\n".join(row for row in short.splitlines() if not row.startswith((b"cluster_stats", b"total_cluster")))
        held = self._beliefs.get(target.key)
        now = self._clock.monotonic()
        if held and held[0] == hint and not target.moving and now - held[1] < _BELIEF_SECONDS:
            return held[2]
        (long,) = await line.ask(resp(("CLUSTER", "NODES")), 1)
        if not isinstance(long, bytes):
            raise long if isinstance(long, ReplyError) else ReplyError(f"CLUSTER NODES: {long!r}")
        seen = cluster_seen(short, long)
        if b"handshake" in long:
            self._beliefs.pop(target.key, None)
        else:
            self._beliefs[target.key] = (hint, now, seen)
        return seen

    def forget(self, key: Key) -> None:
        """Drop what was kept of a node."""
        self._beliefs.pop(key, None)

    # -- who leads

    async def elect(self, target: Target, *, order: int, seize: bool, others: Sequence[Target] = ()) -> None:
        async with self._guarded(target):
            if seize:
                await self._has_heard(target, others)
            self._let_pass(order, target, leading=True)
            await self._order(target, ("CLUSTER", "FAILOVER", "TAKEOVER" if seize else "FORCE"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ELECTION_SECONDS):
                while (await self._replication(target))["role"] != "master":
                    await self._clock.sleep(_POLL_SECONDS)

    async def _has_heard(self, target: Target, others: Sequence[Target]) -> None:
        """Wait until it no longer believes that its primary owned what others own."""
        owned = await self._owned_by(others)
        try:
            async with asyncio.timeout(_GOSSIP_SECONDS):
                while contested := common((await self._believes(target)).inherits, owned):
                    await self._clock.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise OrderFailed(f"{target.key[1]} would take {count(contested)} slots that others own by now") from None

    async def _owned_by(self, others: Sequence[Target]) -> Ranges:
        return union(*(seen.slots for seen in await asyncio.gather(*(self._believes(o) for o in others))))

    async def take_all(self, target: Target) -> None:
        """Have a replica take all slots of a primary that is not in cluster mode; confirmed when it serves."""
        await self._order(target, ("CLUSTER", "FAILOVER", "TAKEOVER"))
        while (await self._replication(target))["role"] != "master" or not (await self._believes(target)).ok:
            await self._clock.sleep(_POLL_SECONDS)

    async def has_refused(self, target: Target) -> int:
        """How many commands of its primary's stream it has refused."""
        (stats,) = await self._order(target, ("INFO", "stats"))
        assert isinstance(stats, bytes)
        return refused(stats)

    async def swap(self, giver: Target, taker: Target, *, order: int, timeout_seconds: float) -> None:
        """No vote is asked for: a graceful failover by the engine needs one, is refused for 30 s after the last in its shard, and
        then lets writes wait for seconds. Here the giver is paused before and until it has seen that it no longer leads."""
        async with self._guarded(*sorted((giver, taker), key=lambda t: t.key)):
            self._let_pass(order, giver, taker)
            gives, takes = await asyncio.gather(self._replication(giver), self._replication(taker))
            if gives["role"] == "slave" and takes["role"] == "master":
                return
            follows = (takes.get("master_host"), takes.get("master_link_status"))
            if gives["role"] != "master" or follows != (giver.address, "up"):
                raise OrderFailed(f"{taker.key[1]} does not follow {giver.key[1]} as its primary, so it cannot take over")
            try:
                async with asyncio.timeout(timeout_seconds * 0.8):
                    await self._caught_up(giver, taker)
                    await self._agreed(giver, taker)
                    await self._order(giver, pause(timeout_seconds))
                    await self._caught_up(giver, taker)
                    await self._agreed(giver, taker)
            except (TimeoutError, OrderFailed) as error:
                await self._order(giver, ("CLIENT", "UNPAUSE"))
                raise OrderFailed(f"{str(error) or 'it did not catch up in time'}; {giver.key[1]} leads on") from error
            await self._order(giver, pause(timeout_seconds))  # the full time, from now
            self._let_pass(order, taker, leading=True)
            try:
                async with asyncio.timeout(timeout_seconds * 0.4):  # then it is stopped for certain, while the giver is paused
                    await self._order(taker, ("CLUSTER", "FAILOVER", "TAKEOVER"))
            except TimeoutError:
                await self._order(giver, pause(2 * timeout_seconds))
                raise OrderFailed(f"{taker.key[1]} was told to take over, and does not answer") from None
            try:
                async with asyncio.timeout(timeout_seconds * 0.5):
                    while (await self._replication(giver))["role"] == "master" and (await self._believes(giver)).slots:
                        await self._clock.sleep(_POLL_SECONDS / 4)
            except TimeoutError:
                raise OrderFailed(f"{taker.key[1]} has taken over, but {giver.key[1]} has not heard of it") from None
            await self._order(giver, ("CLIENT", "UNPAUSE"))
            await self._become_replica(giver, taker)

    async def _agreed(self, giver: Target, taker: Target) -> None:
        """The taker takes what *it* believes the giver to own: less, and the giver goes on leading; more, and it is another's."""
        while (await self._believes(giver)).slots != (await self._believes(taker)).inherits:
            await self._clock.sleep(_POLL_SECONDS)

    async def _become_replica(self, target: Target, primary: Target) -> None:
        """Where the engine has not done it already. One that lost its last slot to a node that it does not count to its own shard
        (Valkey: shard ids of a new cluster may stay apart) goes on as an empty-handed primary; and a primary becomes a replica only
        if it holds no keys. Without slots it holds none that anybody could ask it for."""
        if (await self._replication(target))["role"] == "master":
            if (await self._believes(target)).slots:
                raise OrderFailed(f"{target.key[1]} owns slots, so it cannot become a replica")
            await self._order(target, ("FLUSHALL",))
        await self._order(target, ("CLUSTER", "REPLICATE", primary.cluster_id))

    async def _believes(self, target: Target) -> ClusterSeen:
        short, long = await self._order(target, ("CLUSTER", "INFO"), ("CLUSTER", "NODES"))
        assert isinstance(short, bytes)
        assert isinstance(long, bytes)
        return cluster_seen(short, long)

    async def _caught_up(self, giver: Target, taker: Target) -> None:
        goal = int((await self._replication(giver))["master_repl_offset"])
        while int((await self._replication(taker)).get("slave_repl_offset", "0")) < goal:
            await self._clock.sleep(_POLL_SECONDS / 4)

    async def replicate(self, target: Target, *, primary: Target, order: int) -> None:
        async with self._guarded(target):
            self._let_pass(order, target)
            await self._become_replica(target, primary)

    # -- acquaintance

    async def meet(self, target: Target, others: Sequence[Target]) -> None:
        async with self._guarded(target):
            await self._order(target, *(("CLUSTER", "MEET", o.address, str(o.port)) for o in others))
            ids = {o.cluster_id for o in others}
            with contextlib.suppress(TimeoutError):  # what comes of it later is seen by looking
                async with asyncio.timeout(_MEETING_SECONDS):
                    while ids - (await self._believes(target)).knows:
                        await self._clock.sleep(_POLL_SECONDS)
        self.forget(target.key)

    async def disown(self, target: Target, ids: Sequence[str]) -> None:
        async with self._guarded(target):
            for id in ids:
                with _but_for("Unknown node"):
                    await self._order(target, ("CLUSTER", "FORGET", id))
        self.forget(target.key)

    # -- who owns what

    async def own(self, target: Target, slots: Sequence[SlotRange], *, order: int, others: Sequence[Target]) -> None:
        """ADDSLOTS is refused where the node still believes in an owner of before, who never claims them again: then SETSLOT, and
        in either case at an epoch that everybody yields to."""
        async with self._guarded(target):
            if owned := common(await self._owned_by(others), tuple(slots)):
                raise OrderFailed(f"{target.key[1]} is not given {count(owned)} slots that somebody owns after all")
            self._let_pass(order, target)
            await self._order(target, ("CLUSTER", "BUMPEPOCH"))
            try:
                await self._order(target, ("CLUSTER", "ADDSLOTS", *(str(s) for s in _each(slots))))
            except OrderFailed as error:
                if "busy" not in str(error):
                    raise
                lines = _SETSLOT_LINES if await self._waits_for_replicas(target) else 1
                async with self._private(target, lines) as gives:
                    await _spread(gives, target, _setslot(_each(slots), "NODE", target.cluster_id))

    async def settle(self, target: Target, slots: Sequence[SlotRange]) -> None:
        async with self._guarded(target):
            await self._order(target, *(("CLUSTER", "SETSLOT", str(s), "STABLE") for s in _each(slots)))

    async def move_slots(
        self,
        source: Target,
        target: Target,
        slots: Sequence[SlotRange],
        *,
        source_order: int,
        target_order: int,
        seconds: float,
    ) -> None:
        self._let_pass(source_order, source)
        self._let_pass(target_order, target)
        end = self._clock.monotonic() + seconds
        async with self._private(source, 1) as (from_source,):
            if "atomic-slot-migration" in capabilities_of(source.engine, source.version) & capabilities_of(
                target.engine, target.version
            ):
                await self._move_whole(from_source, source, target, slots, end)
                return
            lines = [_SETSLOT_LINES if await self._waits_for_replicas(node) else 1 for node in (source, target)]
            async with self._private(source, lines[0]) as gives, self._private(target, lines[1]) as takes:
                await self._move_keys(gives, takes, source, target, slots, end)

    async def _waits_for_replicas(self, target: Target) -> bool:
        return target.engine == "valkey" and (await self._replication(target)).get("connected_slaves", "0") != "0"

    async def _move_whole(self, line: Line, source: Target, target: Target, slots: Sequence[SlotRange], end: float) -> None:
        """Have the engine do it. A move that was begun before, by whomever, is waited for instead."""
        before = await _jobs(line)
        if not any(_active(job) for job in before):
            words = [word for a, b in await self._at_once(line, source, slots) for word in (str(a), str(b))]
            if not words:
                return  # they have gone since
            _good(await line.ask(resp(("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *words, "NODE", target.cluster_id)), 1), source)
        old = {job["name"] for job in before if not _active(job)}
        while self._clock.monotonic() < end:
            ours = [job for job in await _jobs(line) if job["name"] not in old]
            for job in ours:
                if job["state"] in ("failed", "cancelled", "canceled"):
                    raise OrderFailed(f"{source.key[1]} did not move slots {job['slot_ranges']}: {job['message'] or job['state']}")
            if not any(_active(job) for job in ours):
                return
            await self._clock.sleep(0.01)

    async def _at_once(self, line: Line, source: Target, slots: Sequence[SlotRange]) -> Ranges:
        """The first of these slots, so that all are moved in as few jobs of the engine's as may be,
        each with about as many keys."""
        self.forget(source.key)
        todo, counts = list(_each(common(tuple(slots), (await self.look(line, source)).slots))), list[int]()
        for first in range(0, len(todo), _COUNT_SLOTS):
            counts += await _counts(line, source, todo[first : first + _COUNT_SLOTS])
        jobs = -(-sum(counts) // _JOB_KEYS) or 1
        sums = list(itertools.accumulate(counts))
        return compact(todo[: bisect.bisect_left(sums, sums[-1] / jobs) + 1] if jobs > 1 else todo)

    async def _move_keys(
        self,
        gives: Sequence[Line],
        takes: Sequence[Line],
        source: Target,
        target: Target,
        slots: Sequence[SlotRange],
        end: float,
    ) -> None:
        """Batch after batch of slots: open them on both sides, empty them, hand them over."""
        todo, done = list(_each(slots)), 0
        owned = sum(b - a + 1 for a, b in (await self.look(takes[0], target)).slots)
        counts: list[int] = []
        while done < len(todo) and self._clock.monotonic() < end:
            if not counts:
                counts = await _counts(gives[0], source, todo[done : done + _COUNT_SLOTS])
            batch = todo[done : done + _fit(counts, max((owned + done) // _KNOWN_SHARE, 1))]
            del counts[: len(batch)]
            if not await self._move_batch(gives, takes, source, target, batch, end):
                return  # time is up: these stay half open, and the next call goes on with them
            done += len(batch)

    async def _move_batch(
        self, gives: Sequence[Line], takes: Sequence[Line], source: Target, target: Target, batch: list[int], end: float
    ) -> bool:
        """IMPORTING before MIGRATING: a client that the source sends to the target is let in there. The target owns before the
        source lets go: at every moment somebody answers. Each of it is harmless where it is so already. False if time was up
        before it was done."""
        with _but_for("already the owner"):
            await _spread(takes, target, _setslot(batch, "IMPORTING", source.cluster_id))
        await _spread(gives, source, _setslot(batch, "MIGRATING", target.cluster_id))
        if not await self._empty(gives[0], source, target, batch, end):
            return False
        await _spread(takes, target, _setslot(batch, "NODE", target.cluster_id))
        await _spread(gives, source, _setslot(batch, "NODE", target.cluster_id))
        return True

    async def _empty(self, line: Line, source: Target, target: Target, left: list[int], end: float) -> bool:
        """Move every key of these slots; False if time was up before."""
        head = _words("MIGRATE", target.address, str(target.port), "", "0", str(_MIGRATE_TIMEOUT_SECONDS * 1000))
        # What the source has of a key is what clients see: a copy that an interrupted move left at the target gives way.
        head += _words("REPLACE", "AUTH2", ADMIN, target.password.value, "KEYS")
        while left:
            found = _good(await line.ask(resp(*_keys_of(left)), len(left)), source)
            full = [(slot, keys) for slot, keys in zip(left, found, strict=True) if isinstance(keys, list) and keys]
            packs = [keys[i : i + _MIGRATE_KEYS] for _, keys in full for i in range(0, len(keys), _MIGRATE_KEYS)]
            for together in _together(packs):
                _good(await line.ask(b"".join(_bulk(head, keys) for keys in together), len(together)), source)
                if self._clock.monotonic() > end:
                    return False
            left = [slot for slot, keys in full if len(keys) == _LISTED_KEYS]
        return True

    @contextlib.asynccontextmanager
    async def _private(self, target: Target, number: int) -> AsyncIterator[list[Line]]:
        """Lines of one's own. Failures become OrderFailed."""
        try:
            async with asyncio.timeout(_LINE_SECONDS), self._lines.private(target, number) as lines:
                yield lines
        except (LineLost, ReplyError) as error:
            raise OrderFailed(f"{target.key[1]}: {error}") from error
        except TimeoutError:
            raise OrderFailed(f"{target.key[1]} did not answer in time") from None


def pause(seconds: float) -> Command:
    """Have a node's clients wait with their writes for so long, or until it is unpaused."""
    return ("CLIENT", "PAUSE", str(int(seconds * 1000)), "WRITE")


async def _spread(lines: Sequence[Line], target: Target, commands: list[Command]) -> None:
    """Commands whose order does not matter, over several lines. Valkey 8 and later answers SETSLOT when the replicas have it: on
    one line each would wait for that by itself, on several they wait together."""
    parts = [commands[i :: len(lines)] for i in range(len(lines))]
    answers = await asyncio.gather(*(line.ask(resp(*p), len(p)) for line, p in zip(lines, parts, strict=True) if p))
    for replies in answers:
        _good(replies, target)


async def _counts(line: Line, source: Target, slots: list[int]) -> list[int]:
    """How many keys each slot has."""
    asked = [("CLUSTER", "COUNTKEYSINSLOT", str(s)) for s in slots]
    return [n if isinstance(n, int) else 0 for n in _good(await line.ask(resp(*asked), len(asked)), source)]


def _together(packs: Iterable[list[bytes]]) -> Iterator[list[list[bytes]]]:
    """Packs of keys that are sent ahead together: slots with few keys would else cost a round trip each."""
    some: list[list[bytes]] = []
    for keys in packs:
        if some and sum(map(len, some)) + len(keys) > _MIGRATE_KEYS:
            yield some
            some = []
        some.append(keys)
    if some:
        yield some


def _fit(counts: list[int], most: int) -> int:
    """How many of the next slots to open together: at least one, at most ``most``."""
    keys = 0
    most = min(len(counts), _OPEN_SLOTS, most)
    for n, more in enumerate(counts[:most]):
        keys += more
        if keys > _OPEN_KEYS and n:
            return n
    return most


def _setslot(slots: Iterable[int], what: str, id: str) -> list[Command]:
    return [("CLUSTER", "SETSLOT", str(s), what, id) for s in slots]


def _keys_of(slots: Iterable[int]) -> list[Command]:
    return [("CLUSTER", "GETKEYSINSLOT", str(s), str(_LISTED_KEYS)) for s in slots]


async def _jobs(line: Line) -> list[dict[str, str]]:
    """CLUSTER GETSLOTMIGRATIONS, newest first."""
    (reply,) = await line.ask(resp(("CLUSTER", "GETSLOTMIGRATIONS")), 1)
    if not isinstance(reply, list):
        raise OrderFailed(f"CLUSTER GETSLOTMIGRATIONS: {reply!r}")
    return [dict(zip(map(_text, job[::2]), map(_text, job[1::2]), strict=True)) for job in reply if isinstance(job, list)]


def _active(job: Mapping[str, str]) -> bool:
    return job["operation"] == "EXPORT" and job["state"] not in ("success", "failed", "cancelled", "canceled")


def _each(slots: Sequence[SlotRange]) -> Iterable[int]:
    return (slot for a, b in slots for slot in range(a, b + 1))


def _text(reply: Reply) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


def _words(*words: str) -> list[bytes]:
    return [word.encode() for word in words]


def _bulk(head: list[bytes], keys: list[bytes]) -> bytes:
    """A command as an engine reads it. Keys are bytes, whatever they hold."""
    words = [*head, *keys]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _good(replies: list[Reply], target: Target) -> list[Reply]:
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise OrderFailed(f"{target.key[1]}: {reply}")
    return replies


@contextlib.contextmanager
def _but_for(words: str):  # type: ignore[no-untyped-def]
    """An order that fails because its effect is there already has succeeded."""
    try:
        yield
    except OrderFailed as error:
        if words not in str(error):
            raise
