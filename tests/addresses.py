"""Loopback addresses and ports that belong to this test process alone.

Tests run side by side: several workers of one run, several checkouts of one machine. Each process takes the first share that is
free and holds it by a lock on a file until it ends, so that none has to guess from its own number what others do not use.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import socket
import tempfile
from pathlib import Path

_SHARES = 100
_PORTS = 100
_FIRST_NETWORK, _FIRST_PORT, _BUS = 120, 11_000, 10_000
_numbers = itertools.count()
_held: list[int] = []


@functools.cache
def _share() -> int:
    """The number of our share, from now on until this process ends."""
    place = Path(tempfile.gettempdir()) / "cachekeep-test-shares"
    place.mkdir(mode=0o777, exist_ok=True)
    for step in range(_SHARES):
        number = (os.getpid() + step) % _SHARES  # not the one that was given back last: what it was used for may still be ending
        try:
            lock = os.open(place / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        _held.append(lock)
        return number
    raise AssertionError(f"more than {_SHARES} test processes at a time")


def own_name(name: str) -> str:
    """``name`` with the number of our share, for what the machine has once: a control group is named after a cache's uid."""
    return f"{name}-{_share()}"


def new_address() -> str:
    """A loopback address."""
    number = next(_numbers)
    return f"127.{_FIRST_NETWORK + _share()}.{number // 250 % 128}.{number % 250 + 1}"


def new_pool() -> str:
    """254 loopback addresses, as ``--address-pool`` takes them."""
    return f"127.{_FIRST_NETWORK + _share()}.{128 + next(_numbers) % 128}.0/24"


def free_port(address: str = "127.0.0.1") -> int:
    """A port on which nobody listens, and on whose cluster bus nobody does either; below those of outgoing connections."""
    for _ in range(_PORTS):
        port = _FIRST_PORT + _share() * _PORTS + next(_numbers) % _PORTS
        with socket.socket() as service, socket.socket() as bus:
            try:
                service.bind((address, port))
                bus.bind((address, port + _BUS))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port of {address} is free")
