"""Memcached's auto discovery: the list of nodes as clients read it, and the board from which a node tells it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cachekeep.errors import OrderFailed
from cachekeep.model import Node

KEY = "AmazonElastiCache:cluster"
"""The key that every Memcached node holds, for clients that ask nodes (Auto Discovery guide, "Adding auto discovery to your client
library"). A client's ``flush_all`` takes it away, as it does with every key."""
BOARD = "discovery.board"
"""A node's own file: a generation (8 bytes, little-endian), then two slots, each with eight digits of length and a list. The slot
``generation % 2`` is the one that counts. ``toolchain/memcached_config.c`` reads it."""
GENERATION_BYTES, SLOT_BYTES, _SIZE_DIGITS = 8, 16384, 8


def payload(version: int, nodes: Sequence[Node]) -> str:
    """The list as clients read it: ``version`` (grows with every change), then ``host|ip|port`` of each node, sorted by name.

    Ends with a line feed, which the announced length counts; the same text is what every node holds. Host and ip are the same here.
    """
    return f"{version}\n" + " ".join(f"{n.address}|{n.address}|{n.port}" for n in sorted(nodes, key=lambda n: n.name)) + "\n"


def version_of(payload: bytes) -> int:
    """The version in a list, 0 if it is none."""
    first = payload.split(b"\n", 1)[0].strip()
    return int(first) if first.isdigit() else 0


def slot(payload: str) -> str:
    """A slot of a board. Raises ``OrderFailed`` for a list that is too long: some 150 nodes; ElastiCache has 60 at most."""
    if len(payload) > SLOT_BYTES - _SIZE_DIGITS:
        raise OrderFailed(f"a discovery list of {len(payload)} bytes does not fit on a node's board")
    return (f"{len(payload):0{_SIZE_DIGITS}}" + payload).ljust(SLOT_BYTES, "\0")


def first_board(payload: str) -> str:
    """A board that no process has read yet."""
    return "\0" * GENERATION_BYTES + slot(payload) + slot("")
