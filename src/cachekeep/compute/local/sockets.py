"""The TCP sockets of a process that is dead but not gone: they keep its addresses from its successor, and its clients waiting.

A process that was killed while it hangs in the kernel (a disk that answers no more) runs no instruction of its own again, but its
sockets stay open until it leaves the kernel, which may be never. ``SOCK_DESTROY`` (sock_diag(7), by ss(8)) closes them for it.
Needs root.

The same ends what clients of this host have open to a process that is gone, where its last packets do not reach them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess

Endpoint = tuple[str, int]
_SS_SECONDS = 5.0


def of_process(pid: int) -> set[Endpoint]:
    """Local address and port of every TCP socket that the process holds,
    whatever the socket's state (proc(5), /proc/PID/net/tcp)."""
    inodes = set()
    for entry in _names(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{entry}"))
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{table}", encoding="ascii") as rows:
            next(rows, None)
            for row in rows:
                fields = row.split()
                if f"socket:[{fields[9]}]" in inodes:
                    found.add(parse_endpoint(fields[1]))
    return found


def parse_endpoint(text: str) -> Endpoint:
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
    if os.geteuid() != 0:
        return "its addresses can be freed by root only"
    if shutil.which("ss") is None:
        return "its addresses can be freed by ss only (apt install iproute2)"
    said = ""
    for address, port in sorted(held):
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        try:
            done = subprocess.run(
                ["ss", "-K", "-H", "-t", "-a", "-n", "src", where], capture_output=True, text=True, timeout=_SS_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            said = f"ss did not end within {_SS_SECONDS:g} s"
            continue
        said = done.stderr.strip() or said
    left = of_process(pid)
    return f"it still holds {', '.join(f'{a}:{p}' for a, p in sorted(left))} {said}".strip() if left else None


def disconnect(address: str, port: int) -> None:
    """Have every connection of this host to an endpoint whose process has ended end, too. Where a cut keeps the kernel's own word
    from its clients, they would wait for as long as their timeouts are. Does nothing without root or ss."""
    if os.geteuid() == 0 and shutil.which("ss") is not None:
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["ss", "-K", "-H", "-t", "-n", "dst", where], capture_output=True, timeout=_SS_SECONDS, check=False)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
