"""Who tells Memcached's discovery list: at the configuration endpoint a process of its own (``relay.py``), at nodes they."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from cachekeep.compute.contract import File, ProcessSpec
from cachekeep.engines.discovery import BOARD, GENERATION_BYTES, SLOT_BYTES, payload, slot
from cachekeep.engines.limits import front_limits
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front, Node

PROGRAM = "cachekeep-discovery-relay"
LIST = "cluster"
DEADLINE_SECONDS = 3.0


def spec(cache: Cache, front: Front, nodes: Sequence[Node], version: int, *, told_version: str) -> ProcessSpec:
    """The process that answers at the configuration endpoint. ``told_version``: what it calls itself while no node is reached."""
    return ProcessSpec(
        key=(cache.uid, front.name),
        incarnation=front.incarnation,
        argv=(PROGRAM, "{dir}"),
        files={"listen": File(f"{{listen}} {front.port} {told_version}\n"), LIST: File(_list(version, nodes))},
        env={"MALLOC_ARENA_MAX": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        address=front.address,
        port=front.port,
        probe="tcp",
        limits=front_limits(front),
    )


async def point(directory: Path, front: Front, nodes: Sequence[Node], version: int) -> None:
    """Have the endpoint tell this list. When it returns, every answer is of this version. Idempotent. Raises ``OrderFailed``."""
    beside = directory / f"{LIST}.new"
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(_list(version, nodes))
        beside.replace(directory / LIST)
    except OSError as error:
        raise OrderFailed(f"discovery {front.name}: its list cannot be written: {error}") from error
    told = await _told(front)
    if told != payload(version, nodes):
        raise OrderFailed(f"discovery {front.name} tells version {told.partition(chr(10))[0]} in spite of its orders")


async def pointed(directory: Path, front: Front) -> tuple[tuple[str, ...], int]:
    """Node names and version of the list that the endpoint tells now. Raises ``OrderFailed`` if it doesn't answer."""
    told = await _told(front)
    try:
        names, _, text = (directory / LIST).read_text().partition("\n")
    except OSError as error:
        raise OrderFailed(f"discovery {front.name}: its list cannot be read: {error}") from error
    if text != told:
        raise OrderFailed(f"discovery {front.name} tells another list than its own")
    return tuple(names.split()), int(told.partition("\n")[0])


def post(directory: Path, name: str, payload: str) -> None:
    """Put a list on a node's board, in place: the node has it mapped. Does nothing where it has none. Raises ``OrderFailed``."""
    try:
        fd = os.open(directory / BOARD, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OrderFailed(f"{name}: its discovery board cannot be opened: {error.strerror}") from error
    try:
        generation = int.from_bytes(os.pread(fd, GENERATION_BYTES, 0), "little") + 1
        os.pwrite(fd, slot(payload).encode(), GENERATION_BYTES + generation % 2 * SLOT_BYTES)
        os.pwrite(fd, generation.to_bytes(GENERATION_BYTES, "little"), 0)
    except OSError as error:
        raise OrderFailed(f"{name}: its discovery board cannot be written: {error.strerror}") from error
    finally:
        os.close(fd)


def _list(version: int, nodes: Sequence[Node]) -> str:
    return " ".join(sorted(n.name for n in nodes)) + "\n" + payload(version, nodes)


async def _told(front: Front) -> str:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            reader, writer = await asyncio.open_connection(front.address, front.port)
            writer.write(b"config get cluster\r\n")
            head = (await reader.readline()).split()
            if head[:3] != [b"CONFIG", b"cluster", b"0"]:
                raise OrderFailed(f"discovery {front.name} answers in an unknown way: {head[:3]}")
            return (await reader.readexactly(int(head[3]))).decode()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise OrderFailed(f"discovery {front.name} does not answer: {error or 'nothing in time'}") from error
    finally:
        if writer is not None:
            writer.close()
