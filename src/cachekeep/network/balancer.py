"""The readers' balancer: HAProxy in TCP mode, pointed at the in-sync replicas through its runtime API.

Servers are added and deleted while it runs (HAProxy 2.6, management guide, "add server" and "del server"), each under its node's
own name, so what the balancer points at can be read back from itself. It makes no health checks: whether a replica may be read is
decided by the keeper, which knows more than a port probe does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cachekeep.compute.contract import File, ProcessSpec
from cachekeep.engines.limits import front_limits
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front, Node
from cachekeep.model.endpoint import joined

PROGRAM = "haproxy"
SOCKET = "admin.sock"
CONFIG = "haproxy.cfg"
DEADLINE_SECONDS = 3.0
STARTING_SECONDS = 0.3
"""A balancer that just started accepts clients a moment before it opens its socket."""
_BACKEND = "readers"
_MARK = "    # servers, rewritten whenever they change"

Backend = tuple[str, str, int]
"""Node name, address, port."""


def spec(cache: Cache, front: Front, nodes: Sequence[Node]) -> ProcessSpec:
    """The process of a balancer that begins with ``nodes`` as its targets. Its working directory is its own: the socket is
    relative.

    Each client costs two descriptors; where fewer may be opened, HAProxy takes fewer
    connections. Idle sessions are left alone (24 days is the longest that HAProxy counts): ElastiCache's ``timeout`` is
    the engine's matter.
    """
    limits = front_limits(front)
    config = f"""\
global
    fd-hard-limit {limits.open_files}
    nbthread 1
    stats socket unix@{SOCKET} mode 600 level admin
    stats timeout 1h
defaults
    mode tcp
    timeout connect 1s
    timeout client 24d
    timeout server 24d
    timeout queue 1s
    option clitcpka
    option srvtcpka
    option redispatch 1
    retries 3
frontend reader
    bind {{listen}}:{front.port}
    default_backend {_BACKEND}
backend {_BACKEND}
    balance leastconn
{_MARK}
{_servers((n.name, n.address, n.port) for n in nodes)}"""
    return ProcessSpec(
        key=(cache.uid, front.name),
        incarnation=front.incarnation,
        argv=(PROGRAM, "-db", "-f", f"{{dir}}/{CONFIG}"),
        files={CONFIG: File(config)},
        address=front.address,
        port=front.port,
        probe="tcp",
        limits=limits,
    )


async def pointed(socket_path: Path) -> tuple[str, ...]:
    """Names of the nodes that get new connections, sorted. Raises ``OrderFailed`` if the balancer doesn't answer."""
    return tuple(sorted(name for name, (_, ready) in (await _seen(socket_path)).items() if ready))


async def point(socket_path: Path, targets: Sequence[Backend]) -> None:
    """Have exactly ``targets`` get connections; sessions with any other node are cut. Idempotent.

    New ones come in before old ones go. The configuration beside the socket is rewritten, so that a restarted balancer has the
    same. Raises ``OrderFailed`` when it was not confirmed as done.
    """
    seen = await _seen(socket_path)
    wanted = {name: joined(address, port) for name, address, port in targets}
    for name, at in wanted.items():
        server = f"{_BACKEND}/{name}"
        if name in seen and seen[name][0] != at:
            await _remove(socket_path, name)
        if name not in seen or seen[name][0] != at:
            await _say(socket_path, f"add server {server} {at}", expect="New server registered")
        if seen.get(name) != (at, True):
            await _say(socket_path, f"set server {server} state ready")
    for name in seen.keys() - wanted.keys():
        await _remove(socket_path, name)
    if (now := await pointed(socket_path)) != tuple(sorted(wanted)):
        raise OrderFailed(f"balancer {socket_path.parent.name} points at {', '.join(now) or 'nothing'} in spite of its orders")
    _rewrite(socket_path.parent / CONFIG, targets)


async def _remove(socket_path: Path, name: str) -> None:
    server = f"{_BACKEND}/{name}"
    await _say(socket_path, f"set server {server} state maint")
    until = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while True:
        await _say(socket_path, f"shutdown sessions server {server}")
        answer = await _ask(socket_path, f"del server {server}")
        if "Server deleted" in answer or "No such server" in answer:
            return
        if asyncio.get_running_loop().time() > until:
            raise OrderFailed(f"balancer {socket_path.parent.name} keeps {name}: {answer}")
        await asyncio.sleep(0.005)  # Sessions end when the balancer next turns its loop.


async def _seen(socket_path: Path) -> dict[str, tuple[str, bool]]:
    """Name -> where, and whether it is ready (up, and not put to maintenance)."""
    rows = [line.split() for line in (await _ask(socket_path, f"show servers state {_BACKEND}")).splitlines()]
    if not rows or rows[0] != ["1"]:
        raise OrderFailed(f"balancer {socket_path.parent.name} answers in an unknown way: {rows[:1]}")
    columns = rows[1][1:]  # "# be_id be_name …"
    servers = [dict(zip(columns, row, strict=False)) for row in rows[2:] if row]
    return {
        s["srv_name"]: (joined(s["srv_addr"], int(s["srv_port"])), s["srv_op_state"] == "2" and s["srv_admin_state"] == "0")
        for s in servers
    }


async def _say(socket_path: Path, command: str, *, expect: str = "") -> None:
    answer = await _ask(socket_path, command)
    if expect not in answer if expect else answer:
        raise OrderFailed(f"balancer {socket_path.parent.name} refused '{command}': {answer or 'no reason given'}")


async def _ask(socket_path: Path, command: str) -> str:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            reader, writer = await _connect(socket_path)
            writer.write(command.encode() + b"\n")
            return (await reader.read(-1)).decode().strip()
    except (OSError, TimeoutError) as error:
        raise OrderFailed(f"balancer {socket_path.parent.name} does not answer: {error or 'nothing in time'}") from error
    finally:
        if writer is not None:
            writer.close()


async def _connect(socket_path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """By way of its directory: the path of a unix socket may have 108 bytes, and a data directory may be anywhere."""
    until = asyncio.get_running_loop().time() + STARTING_SECONDS
    while True:
        try:
            directory = os.open(socket_path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{socket_path.name}")
            finally:
                os.close(directory)
        except (ConnectionRefusedError, FileNotFoundError):
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.005)


def _rewrite(path: Path, targets: Sequence[Backend]) -> None:
    try:
        old = path.read_text()
        new = old[: old.index(_MARK)] + _MARK + "\n" + _servers(targets)
        if new == old:
            return
        beside = path.with_suffix(".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(new)
        beside.replace(path)
    except (OSError, ValueError) as error:
        raise OrderFailed(f"balancer {path.parent.name}: its configuration cannot be rewritten: {error}") from error


def _servers(targets: Iterable[Backend]) -> str:
    return "".join(f"    server {name} {joined(address, port)}\n" for name, address, port in targets)
