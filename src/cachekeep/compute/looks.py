"""What a look asks of an engine, all in one go, and what comes of the replies."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.compute.contract import Target
from cachekeep.compute.line import Line, Reply, ReplyError, resp
from cachekeep.engines.config import BOUNDS
from cachekeep.engines.replies import DISCOVERY_KEY, discovery_version, info, memcached_bounds, node_view, reaches
from cachekeep.model import NodeView

_SECTIONS = tuple(("INFO", section) for section in ("replication", "persistence", "keyspace", "memory", "clients"))
_LOOK = (*_SECTIONS, ("ROLE",), *(("CONFIG", "GET", name) for name in ("bind", *BOUNDS)))
_LOOK_PAYLOAD = resp(*_LOOK)
_LOOK_MEMCACHED = b"get %b\r\nstats settings\r\n" % DISCOVERY_KEY.encode()


async def look_resp(line: Line) -> NodeView:
    """Ask a Valkey or Redis server. Raises LineLost, or ReplyError in its words."""
    replies = good(await line.ask(_LOOK_PAYLOAD, len(_LOOK)))
    fields = info(b"".join(part for part in replies[: len(_SECTIONS)] if isinstance(part, bytes)))
    role, *told = replies[len(_SECTIONS) :]
    settings = {text(pair[0]): text(pair[1]) for pair in told if isinstance(pair, list) and len(pair) == 2}
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
