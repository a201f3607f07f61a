"""The configuration endpoint of a group in cluster mode ``compatible``:
the process that answers there (``compatible_relay.py``)."""

from __future__ import annotations

import asyncio
import hashlib

from cachekeep.compute.contract import File, ProcessSpec
from cachekeep.engines.limits import front_limits
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front

PROGRAM = "cachekeep-compatible-relay"
DEADLINE_SECONDS = 0.25


def spec(cache: Cache, front: Front) -> ProcessSpec:
    """The process that presents the primary as a cluster of one.
    It reaches it at the primary endpoint, which moves with the lead."""
    primary = cache.decided.shards[0].primary_address
    node_id = hashlib.sha1(f"{cache.uid}/{front.name}".encode(), usedforsecurity=False).hexdigest()
    return ProcessSpec(
        key=(cache.uid, front.name),
        incarnation=front.incarnation,
        argv=(PROGRAM, "{dir}"),
        files={"listen": File(f"{{listen}} {front.port} {primary} {node_id}\n")},
        env={"MALLOC_ARENA_MAX": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        address=front.address,
        port=front.port,
        probe="tcp",
        limits=front_limits(front),
    )


async def answers(front: Front) -> None:
    """Raises ``OrderFailed`` if nobody takes a connection. Asks nothing: an answer would be the primary's."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            _, writer = await asyncio.open_connection(front.address, front.port)
    except OSError as error:
        raise OrderFailed(f"{front.name} does not answer: {error or 'nothing in time'}") from error
    writer.close()
