"""Connections that are held while nobody is there to use them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engines.servers import until

from cachekeep.compute.spares import Spares


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def holders(directory: Path) -> list[int]:
    """Processes that hold for a directory."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(directory).encode() in words and any(w.endswith(b"spares.py") for w in words):
                found.append(int(entry))
    return found


async def test_what_is_held_outlives_who_put_it(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    assert Spares(deep).take("a") is None
    Spares(deep).put("a", ours)
    ours.close()
    theirs.settimeout(0.1)
    with pytest.raises(TimeoutError):
        theirs.recv(1)
    theirs.settimeout(60)
    another = Spares(deep)
    assert (another.has("a"), another.has("b")) == (True, False)
    taken = another.take("a")
    assert taken is not None
    taken.sendall(b"x")
    assert theirs.recv(1) == b"x"
    assert another.take("a") is None, "it is held no longer"
    taken.close()
    await until(lambda: not holders(deep))


async def test_one_that_is_closed_is_dropped_and_with_the_last_the_holder_goes(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    spares = Spares(tmp_path)
    spares.put("a", ours)
    ours.close()
    assert len(holders(tmp_path)) == 1
    theirs.close()
    await until(lambda: not spares.has("a"))
    await until(lambda: not holders(tmp_path))
    assert not (tmp_path / "spares.sock").exists()


async def test_a_holder_that_was_killed_is_started_anew(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    spares = Spares(tmp_path)
    spares.put("a", ours)
    (holder,) = holders(tmp_path)
    os.kill(holder, 9)
    await until(lambda: not spares.has("a"))
    spares.put("a", ours)
    assert spares.has("a")
    ours.close()
    theirs.close()
    await until(lambda: not holders(tmp_path))
