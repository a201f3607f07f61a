"""What a look asks of an engine, all in one go, and what comes of the replies."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.compute.contract import Target
from cachekeep.compute.line import Line, Reply, ReplyError, resp
from cachekeep.engines.config import BOUNDS
from cachekeep.engines.replies import DISCOVERY_KEY, amounts, discovery_version, info, memcached_bounds, node_view, reaches
from cachekeep.model import NodeView

_INFO = tuple(("INFO", section) for section in ("replication", "persistence", "keyspace", "memory", "clients"))
_READ_WHOLE = 3
_NAMES = ("bind", *BOUNDS)
_SINCE_7 = (*_INFO, ("ROLE",), ("CONFIG", "GET", *_NAMES))
_BEFORE = (*_INFO, ("ROLE",), *(("CONFIG", "GET", name) for name in _NAMES))
_PAYLOADS = {commands: resp(*commands) for commands in (_SINCE_7, _BEFORE)}
_LOOK_MEMCACHED = b"get %b\r\nstats settings\r\n" % DISCOVERY_KEY.encode()


async def look_resp(line: Line, target: Target) -> NodeView:
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


async def look_memcached(line: Line, target: Target) -> NodeView:
    """Ask a Memcached server. Raises LineLost, or ReplyError in its words."""
    payload, settings = good(await line.ask(_LOOK_MEMCACHED, 2))
    return NodeView(
        answer="complete",
        discovery_version=discovery_version(payload) if isinstance(payload, bytes) else 0,
        bound=frozenset({target.address}),
        settings=memcached_bounds(settings) if isinstance(settings, bytes) else {},
    )


def good(replies: list[Reply]) -> list[Reply]:
    """The replies, if none of them is an error. Raises ReplyError."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies


def text(value: object) -> str:
    """A word of a reply."""
    return value.decode() if isinstance(value, bytes) else str(value)
