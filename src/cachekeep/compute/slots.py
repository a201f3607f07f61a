"""Who owns what: slots given to a node, and moves of slots while both sides serve.

Two ways to move slots. Valkey 9 and later do it themselves (``CLUSTER MIGRATESLOTS``: a snapshot, a stream, an instant of pause).
Elsewhere keys go by ``MIGRATE``, slot by slot as the engines' own tool does it, but with many slots open at once and commands
pipelined, so that neither side waits for a round trip to us.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

from cachekeep.clock import Clock
from cachekeep.compute.beliefs import Beliefs
from cachekeep.compute.commands import Command, Commands, but_for, failures
from cachekeep.compute.contract import Target, Targets
from cachekeep.compute.line import Line, LineLost, Reply, ReplyError, good, resp
from cachekeep.compute.lines import Lines
from cachekeep.compute.logins import come_as
from cachekeep.engines.catalogue import capabilities_of
from cachekeep.engines.users import MOVER, REPLICA, secret_of
from cachekeep.errors import OrderFailed
from cachekeep.model import MoveSlots, Own, Settle, SlotRange
from cachekeep.plan.slots.ranges import Ranges, common, compact, count

_OPEN_SLOTS, _OPEN_KEYS = 128, 4_000
"""So many slots are half open at a time, and no more than hold so many keys together. While a slot is half open, clients are sent
from one side to the other and back; few slots at a time, each for a few milliseconds, keep that rare."""
_SETSLOT_LINES = 32
_SETSLOT_LINES_BY_TLS = 8
"""There each line costs its hands being shaken, which is longer than it saves."""
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


class Slots:
    """Each public method carries out the effect of its name."""

    def __init__(self, commands: Commands, beliefs: Beliefs, lines: Lines, clock: Clock) -> None:
        self._commands, self._beliefs, self._lines, self._clock = commands, beliefs, lines, clock

    async def own(self, effect: Own, at: Targets) -> None:
        """All ``others`` are asked first, and have to answer. ADDSLOTS is refused where the node still believes in an owner of
        before, who never claims them again: then SETSLOT, and in either case at an epoch that everybody yields to."""
        target, slots = at[effect.node], effect.slots
        async with self._commands.one_at_a_time(target):
            if owned := common(await self._beliefs.owned_by([at[o] for o in effect.others]), slots):
                raise OrderFailed(f"{target.name} is not given {count(owned)} slots that somebody owns after all")
            await self._commands.let_pass(effect.order, target)
            await self._commands.send(target, ("CLUSTER", "BUMPEPOCH"))
            try:
                await self._commands.send(target, ("CLUSTER", "ADDSLOTS", *(str(s) for s in _each(slots))))
            except OrderFailed as error:
                if "busy" not in str(error):
                    raise
                async with self._private(target, await self._lines_to(target)) as gives:
                    await _spread(gives, target, _setslot(_each(slots), "NODE", target.cluster_id))

    async def settle(self, effect: Settle, at: Targets) -> None:
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            await self._commands.send(target, *(("CLUSTER", "SETSLOT", str(s), "STABLE") for s in _each(effect.slots)))

    async def move_slots(self, effect: MoveSlots, at: Targets) -> None:
        """Returns when all are moved or time is up. The engines themselves tell others who owns them now."""
        source, target, slots = at[effect.source], at[effect.target], effect.slots
        await self._commands.let_pass(effect.source_order, source)
        await self._commands.let_pass(effect.target_order, target)
        async with self._private(source, 1) as (from_source,):
            if "atomic-slot-migration" in capabilities_of(source.engine, source.version) & capabilities_of(
                target.engine, target.version
            ):
                async with self._comes_as_mover(source):
                    await self._move_whole(from_source, source, target, slots, self._clock.monotonic() + effect.seconds)
                return
            lines = [await self._lines_to(node) for node in (source, target)]
            async with self._private(source, lines[0]) as gives, self._private(target, lines[1]) as takes:
                await self._move_keys(gives, takes, source, target, slots, self._clock.monotonic() + effect.seconds)

    async def _lines_to(self, target: Target) -> int:
        """How many it takes not to wait for each answer of its replicas by itself."""
        if target.engine != "valkey" or (await self._commands.replication(target)).get("connected_slaves", "0") == "0":
            return 1
        return _SETSLOT_LINES_BY_TLS if target.trust else _SETSLOT_LINES

    @contextlib.asynccontextmanager
    async def _comes_as_mover(self, source: Target) -> AsyncIterator[None]:
        """An engine that moves slots itself logs in at the target as it would at a primary; being one, it has none itself.
        If it stays so, because it or we end: a mover may follow, too, and the next start or change of settings sets it right."""
        await self._commands.send(source, _config(come_as(MOVER, source)))
        try:
            yield
        finally:
            await self._commands.send(source, _config(come_as(REPLICA, source)))

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
                    raise OrderFailed(f"{source.name} did not move slots {job['slot_ranges']}: {job['message'] or job['state']}")
            if not any(_active(job) for job in ours):
                return
            await self._clock.sleep(0.01)

    async def _at_once(self, line: Line, source: Target, slots: Sequence[SlotRange]) -> Ranges:
        """The first of these slots, so that all are moved in as few jobs of the engine's as may be,
        each with about as many keys."""
        self._beliefs.forget(source.key)
        todo, counts = list(_each(common(tuple(slots), (await self._beliefs.look(line, source)).slots))), list[int]()
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
        owned = sum(b - a + 1 for a, b in (await self._beliefs.look(takes[0], target)).slots)
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
        with but_for("already the owner"):
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
        head += _words("REPLACE", "AUTH2", MOVER, secret_of(MOVER, target.password), "KEYS")
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
            raise OrderFailed(f"{target.name}: {error}") from error
        except TimeoutError:
            raise OrderFailed(f"{target.name} did not answer in time") from None


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


def _config(settings: Mapping[str, str]) -> Command:
    return ("CONFIG", "SET", *(word for pair in settings.items() for word in pair))


def _text(reply: Reply) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


def _words(*words: str) -> list[bytes]:
    return [word.encode() for word in words]


def _bulk(head: list[bytes], keys: list[bytes]) -> bytes:
    """A command as an engine reads it. Keys are bytes, whatever they hold."""
    words = [*head, *keys]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _good(replies: list[Reply], target: Target) -> list[Reply]:
    with failures(target):
        return good(replies)
