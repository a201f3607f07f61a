"""A replication stream as commands. Pure.

It is RESP arrays of bulk strings and nothing else (https://valkey.io/topics/protocol/), so where a command ends is told by lengths
alone, whatever bytes are in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from cachekeep.errors import Damaged

_EXEC = (b"EXEC", b"DISCARD")


def commands(data: bytes | bytearray, at: int = 0) -> Iterator[tuple[int, list[bytes]]]:
    """Whole commands from ``at`` on, where one begins: (where it ends, its words). Raises ``Damaged``."""
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return
        if line == at or data[at : at + 1] == b"\n":  # between commands, to keep the connection
            at = line + 2 if line == at else at + 1
            continue
        try:
            if data[at : at + 1] != b"*":
                raise ValueError
            count, place, words = int(data[at + 1 : line]), line + 2, []
            for _ in range(count):
                line = data.find(b"\r\n", place)
                if line < 0:
                    return
                if data[place : place + 1] != b"$":
                    raise ValueError
                begin = line + 2
                end = begin + int(data[place + 1 : line])
                if len(data) < end + 2:
                    return
                words.append(bytes(data[begin:end]))
                place = end + 2
        except ValueError:
            raise Damaged(f"the stream is no stream of commands at byte {at}") from None
        at = place
        yield at, words


def whole(data: bytes | bytearray, at: int = 0) -> int:
    """Up to where there are whole commands, and no transaction that has not ended; ``at``: where a command begins. Raises
    ``Damaged``."""
    good, open_since = at, False
    for end, words in commands(data, at):
        name = words[0].upper() if words else b""
        open_since = name == b"MULTI" or (open_since and name not in _EXEC)
        if not open_since:
            good = end
    return good
