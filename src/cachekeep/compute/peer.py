"""Who is at the other end of a connection on this machine, asked of the kernel (sock_diag(7)): an address proves nothing.

Any user of this machine may listen at an address that a node has just left, and whoever is told a password there has it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1
_HEADER = struct.Struct("=IHHII")
"""``nlmsghdr``: length, type, flags, sequence, port."""
_ASK = struct.Struct("=BBBxI2s2s16s16sI8s")
"""``inet_diag_req_v2``: family, protocol, extensions, states, then ``inet_diag_sockid``: ports, addresses, interface, cookie."""
_TOLD = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
"""``inet_diag_msg``: family, state, timer, retransmissions, ``inet_diag_sockid``, expiry, two queues, user, inode."""
_ANY_COOKIE = b"\xff" * 8
_LISTENING = 10
_ENDING = {4, 5, 6, 7, 9, 11}
"""States of a connection that its process has closed (linux/net/tcp_states.h)."""


def stranger(connection: socket.socket) -> int | None:
    """The user at the other end, if it is a process of this machine that is neither ours nor root's; None: it is not.

    -1: nobody knows. Where the kernel tells nothing, there are no strangers.
    """
    ours, theirs = connection.getsockname(), connection.getpeername()
    seen = _look(connection.family, theirs, ours)
    if seen is None or (not seen.inode and seen.state in _ENDING):  # on another machine, or let go of
        return None
    if not seen.inode:  # not accepted yet: it is in the queue of whoever listens, and goes to nobody else
        seen = _look(connection.family, theirs, None)
    user = seen.user if seen is not None and seen.inode else -1
    return None if user in (0, os.geteuid()) else user


def served(connection: socket.socket, addresses: Collection[str], port: int) -> frozenset[str]:
    """Of the addresses at which the other end says that it listens, those at which a process of ours or of root's does.

    All of them where it is on another machine, or where the kernel tells nothing.
    """
    ours = frozenset(a for a in addresses if (seen := _listener(a, port)) is not None and seen.user in (0, os.geteuid()))
    if len(ours) < len(addresses) and _look(connection.family, connection.getpeername(), connection.getsockname()) is None:
        return frozenset(addresses)
    return ours


def _listener(address: str, port: int) -> _Socket | None:
    seen = _look(socket.AF_INET6 if ":" in address else socket.AF_INET, (address, port), None)
    return seen if seen is not None and seen.state == _LISTENING else None


class _Socket(NamedTuple):
    state: int
    user: int
    inode: int
    """0: no process holds it."""


def _look(family: int, local: tuple[str, int], remote: tuple[str, int] | None) -> _Socket | None:
    """The TCP socket with these ends; without a remote one, that which listens. None: there is none on this machine."""
    ends = [local, remote or ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)]
    ports = [struct.pack("!H", end[1]) for end in ends]
    addresses = [ipaddress.ip_address(end[0]).packed.ljust(16, b"\0") for end in ends]
    asked = _ASK.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF, *ports, *addresses, 0, _ANY_COOKIE)
    with contextlib.suppress(OSError, struct.error):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(1)
            kernel.send(_HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + asked)
            said = kernel.recv(4096)
        if _HEADER.unpack_from(said)[1] == _SOCK_DIAG_BY_FAMILY:
            _, state, *_, user, inode = _TOLD.unpack_from(said, _HEADER.size)
            return _Socket(state, user, inode)
    return None
