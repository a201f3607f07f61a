"""Looks: what is asked of an engine, all in one go, what comes of the replies, and what of their staying away."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.compute.beliefs import Beliefs
from cachekeep.compute.contract import Key, Memory, Target
from cachekeep.compute.line import Line, LineLost, ReplyError, good, resp, text
from cachekeep.compute.lines import Lines
from cachekeep.engines import discovery
from cachekeep.engines.config import BOUNDS
from cachekeep.engines.replies import amounts, excuse, info, memcached_bounds, node_view, reaches
from cachekeep.model import Excuse, Heard, NodeView, Silence
from cachekeep.model.traits import traits

_INFO = tuple(("INFO", section) for section in ("replication", "persistence", "keyspace", "memory", "clients"))
_READ_WHOLE = 3
_NAMES = ("bind", *BOUNDS)
_SINCE_7 = (*_INFO, ("ROLE",), ("CONFIG", "GET", *_NAMES))
_BEFORE = (*_INFO, ("ROLE",), *(("CONFIG", "GET", name) for name in _NAMES))
_PAYLOADS = {commands: resp(*commands) for commands in (_SINCE_7, _BEFORE)}
_LAST_WORD_SECONDS = 0.06
"""What a node that is silent already is given to answer a look; longer than its host may wait with an acknowledgement."""
_LOOK_MEMCACHED = b"config get cluster\r\nget %b\r\nstats settings\r\n" % discovery.KEY.encode()


class Looks:
    """Looks at nodes over the kept lines. ``memory`` is told what a node says that it holds."""

    def __init__(self, memory: Memory, lines: Lines, beliefs: Beliefs, clock: Clock) -> None:
        self._memory, self._lines, self._beliefs, self._clock = memory, lines, beliefs, clock
        self._asked: dict[Key, tuple[Target, asyncio.Task[NodeView]]] = {}
        """The last look at each node: one that is not answered yet is not asked again."""
        self._unkillable: set[Key] = set()
        """Nodes whose script has written, by their own word."""

    def cannot_be_interrupted(self, key: Key) -> None:
        """The node's script has written, by its own word: until it answers, it is not only busy but unkillable."""
        self._unkillable.add(key)

    def keys(self) -> list[Key]:
        """The nodes that were looked at."""
        return [*self._asked]

    def forget(self, key: Key) -> None:
        """Drop what is remembered of a node, and the look that is on its way."""
        if key in self._asked:
            self._asked.pop(key)[1].cancel()
        self._unkillable.discard(key)

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
        asked, task = self._asked.get(target.key, (None, None))
        if task is None or task.done() or asked != target:
            task = asyncio.create_task(self._look_anew(target))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting for it any more
            self._asked[target.key] = target, task
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
        if traits(target.engine).speaks == "memcached":
            return await _look_memcached(line, target)
        asked_at = self._clock.moment()
        seen = await _look_resp(line, target)
        if seen.bound is not None:
            seen = replace(seen, bound=line.served(seen.bound, target.port))
        if seen.stream is not None:
            self._memory.remember(target.key, Heard(asked_at, seen.stream))
        return replace(seen, cluster=await self._beliefs.look(line, target)) if target.cluster_id else seen


async def _look_resp(line: Line, target: Target) -> NodeView:
    """Ask a Valkey or Redis server. Raises LineLost, or ReplyError in its words."""
    commands = _SINCE_7 if int(target.version.partition(".")[0]) >= 7 else _BEFORE
    replies = good(await line.ask(_PAYLOADS[commands], len(commands)))
    *sections, role = replies[: len(_INFO) + 1]
    parts = [part for part in sections if isinstance(part, bytes)]
    fields = info(b"".join(parts[:_READ_WHOLE])) | amounts(b"".join(parts[_READ_WHOLE:]))
    told = [word for reply in replies[len(_INFO) + 1 :] if isinstance(reply, list) for word in map(text, reply)]
    settings = dict(zip(told[::2], told[1::2], strict=True))
    seen = node_view(fields, settings.pop("bind", None), settings)
    return replace(seen, reaches=reaches(role))


async def _look_memcached(line: Line, target: Target) -> NodeView:
    """Ask a Memcached server. It holds a list if it tells the same one to who asks in the new way and in the old.

    Raises LineLost, or ReplyError in its words."""
    config, *rest = await line.ask(_LOOK_MEMCACHED, 3)
    payload, settings = good(rest)
    if isinstance(config, ReplyError):  # its build doesn't know the command
        config = payload
    return NodeView(
        answer="complete",
        discovery_version=discovery.version_of(payload) if isinstance(payload, bytes) and config == payload else 0,
        bound=frozenset({target.address}),
        settings=memcached_bounds(settings) if isinstance(settings, bytes) else {},
    )
