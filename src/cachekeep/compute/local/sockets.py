"""The TCP sockets of a process that is dead but not gone: they keep its addresses from its successor, and its clients waiting.

A process that was killed while it hangs in the kernel (a disk that answers no more) runs no instruction of its own again, but its
sockets stay open until it leaves the kernel, which may be never. ``SOCK_DESTROY`` (sock_diag(7), by ss(8)) closes them for it.
Needs root.

The same ends what clients of this host have open, or try to open, to an endpoint whose packets do not reach them (``clients``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from cachekeep.model.endpoint import joined
from cachekeep.plan.reach.admission import Door

SocketAddress = tuple[str, int]
_SS_SECONDS = 5.0
_ESTABLISHED, _SYN_SENT, _SYN_RECEIVED, _CLOSE_WAIT = "01", "02", "03", "08"
_HELD = {_ESTABLISHED, _SYN_RECEIVED, _CLOSE_WAIT}
"""States of a socket that its process has not closed, or has yet to accept. What the dead leave to the kernel is in others."""
_AT_ONCE = 100


def of_process(pid: int) -> set[SocketAddress]:
    """Local address and port of every TCP socket that the process holds,
    whatever the socket's state (proc(5), /proc/PID/net/tcp)."""
    inodes = {_target(f"/proc/{pid}/fd/{entry}") for entry in _names(f"/proc/{pid}/fd")}
    return {local for local, _, _, inode in _rows(pid) if inode in inodes}


def parse_endpoint(text: str) -> SocketAddress:
    """``0100007F:1F90`` is 127.0.0.1:8080: words of the machine's byte order, here little-endian, and a port."""
    words, port = text.split(":")
    raw = bytes.fromhex(words)
    address = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found), int(port, 16)


def destroy(pid: int) -> str | None:
    """Close the process's TCP sockets, listening ones and connections. None when none is left; else why some are."""
    held = of_process(pid)
    if not held:
        return None
    if (lacking := unable()) is not None:
        return f"its addresses can be freed by {lacking}"
    said = ""
    for address, port in sorted(held):
        try:
            said = _ss_kill("-a", "src", joined(address, port)) or said
        except TimeoutError as late:
            said = str(late)
    left = of_process(pid)
    return f"it still holds {', '.join(f'{a}:{p}' for a, p in sorted(left))} {said}".strip() if left else None


def disconnect(address: str, port: int) -> None:
    """End those connections of this host to an endpoint of which nobody holds the other end, though nothing that their owners hear
    says so. Those to a process that has just been started there are left alone. Raises ``OSError``; blocks."""
    to = (address, port)
    clients = [local for local, remote, state, _ in _rows("self", to) if remote == to and state == _ESTABLISHED]
    if clients:  # asked after them: the other end is there before a client counts as connected
        held = {remote for local, remote, state, _ in _rows("self", to) if local == to and state in _HELD}
        _end([client for client in clients if client not in held], to)


def refuse_dials(address: str, port: int) -> None:
    """Have those of this host who dial an endpoint and have no answer yet fail at once (ECONNABORTED), but for this process.
    Raises ``OSError``; blocks."""
    own = {_target(f"/proc/self/fd/{entry}") for entry in _names("/proc/self/fd")}
    to = (address, port)
    dialling = [
        local for local, remote, state, inode in _rows("self", to) if state == _SYN_SENT and remote == to and inode not in own
    ]
    _end(dialling, to, "state", "syn-sent")


def turn_out(doors: Mapping[SocketAddress, Door], *, ours: int) -> None:
    """End the connections to places that their doors do not let in, but for those of the user ``ours``. The server's end of each is
    closed, which tells the other. Raises ``OSError``; blocks."""
    served: list[tuple[SocketAddress, SocketAddress]] = []
    owners: dict[tuple[SocketAddress, SocketAddress], int] = {}
    for local, remote, state, _, owner in _all_rows("self"):
        if state in _HELD and local in doors:
            served.append((local, remote))
        if remote in doors:
            owners[remote, local] = owner
    out: dict[SocketAddress, list[SocketAddress]] = {}
    for place, client in served:
        user, door = owners.get((place, client)), doors[place]
        if not (door.admits_from(client[0]) if user is None else user == ours or door.admits(user)):
            out.setdefault(place, []).append(client)
    for place, clients in out.items():
        for start in range(0, len(clients), _AT_ONCE):
            theirs = " or ".join(f"dst {joined(*client)}" for client in clients[start : start + _AT_ONCE])
            _ss_kill("src", joined(*place), f"( {theirs} )")


def _end(clients: list[SocketAddress], to: SocketAddress, *which: str) -> None:
    """Each of these connections to an endpoint."""
    for start in range(0, len(clients), _AT_ONCE):
        sources = " or ".join(f"src {joined(*client)}" for client in clients[start : start + _AT_ONCE])
        _ss_kill(*which, "dst", joined(*to), f"( {sources} )")


def unable() -> str | None:
    """Why connections cannot be ended for others; None if they can."""
    if os.geteuid() != 0:
        return "root only"
    return None if shutil.which("ss") else "ss only (apt install iproute2)"


def _ss_kill(*which: str) -> str:
    """``SOCK_DESTROY`` for all that ss finds so; what it complains of. Raises ``OSError``, ``TimeoutError`` among them."""
    try:
        done = subprocess.run(
            ["ss", "-K", "-H", "-t", "-n", *which], capture_output=True, text=True, timeout=_SS_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"ss did not end within {_SS_SECONDS:g} s") from None
    return done.stderr.strip()


def _rows(pid: int | str, either: SocketAddress | None = None) -> Iterator[tuple[SocketAddress, SocketAddress, str, str]]:
    """Local and remote endpoint, state and ``socket:[INODE]`` of the TCP sockets of a process's network namespace: of all, or of
    those with this one at either end (proc(5), /proc/PID/net/tcp)."""
    return (row[:4] for row in _all_rows(pid, either))


def _all_rows(pid: int | str, either: SocketAddress | None = None) -> Iterator[tuple[SocketAddress, SocketAddress, str, str, int]]:
    """The same, with the number of the user that owns each."""
    wanted = None if either is None else _written(either)
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as rows:
            next(rows, None)
            for row in rows:
                fields = row.split()
                if wanted is None or not wanted.isdisjoint(fields[1:3]):
                    inode = f"socket:[{fields[9]}]"
                    yield parse_endpoint(fields[1]), parse_endpoint(fields[2]), fields[3], inode, int(fields[7])


def _written(endpoint: SocketAddress) -> set[str]:
    """An endpoint as /proc/PID/net/tcp and tcp6 have it."""
    address = ipaddress.ip_address(endpoint[0])
    forms = [address.packed] if address.version == 6 else [address.packed, ipaddress.IPv6Address(f"::ffff:{address}").packed]
    words = (b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4)) for raw in forms)
    return {f"{word.hex().upper()}:{endpoint[1]:04X}" for word in words}


def _target(link: str) -> str:
    """Where a link points to; empty where it is gone."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
