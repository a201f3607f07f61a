"""What the head of an RDB says of itself. Format: https://rdb.fnordig.de/file_format.html, and rdb.h of Valkey."""

from __future__ import annotations

_AUX, _FUNCTION, _SELECT, _RESIZE = 0xFA, 0xF5, 0xFE, 0xFB
_MAGIC = (b"REDIS", b"VALKEY")
_VERSION_DIGITS = {b"REDIS": 4, b"VALKEY": 3}


class _Short(Exception):
    """More of it is needed, or it is something else than is known here."""


def keys_of_first_database(head: bytes) -> int | None:
    """How many keys the engine counted in the first database that it wrote, when it forked; None: that is not in this much of it,
    or there are none."""
    reader = _Reader(head)
    try:
        reader.magic()
        while True:
            match reader.byte():
                case code if code == _AUX:
                    reader.skip_string()
                    reader.skip_string()
                case code if code == _FUNCTION:
                    reader.skip_string()
                case code if code == _SELECT:
                    reader.length()
                case code if code == _RESIZE:
                    return reader.length()
                case _:
                    return None
    except _Short:
        return None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise _Short
        self._at += count
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def magic(self) -> None:
        for magic in _MAGIC:
            if self._data.startswith(magic):
                self.take(len(magic) + _VERSION_DIGITS[magic])
                return
        raise _Short

    def length(self) -> int:
        """The top two bits of its first byte say how it is written."""
        first = self.byte()
        match first >> 6:
            case 0:
                return first & 0x3F
            case 1:
                return (first & 0x3F) << 8 | self.byte()
            case 2:
                return int.from_bytes(self.take(8 if first == 0x81 else 4), "big")
        raise _Short

    def skip_string(self) -> None:
        first = self._data[self._at] if self._at < len(self._data) else 0
        if first >> 6 != 3:
            self.take(self.length())
            return
        self.byte()
        match first & 0x3F:
            case 0 | 1 | 2 as width:  # an integer
                self.take(1 << width)
            case 3:  # compressed: its length, and the length of what it was, come before it
                packed = self.length()
                self.length()
                self.take(packed)
            case _:
                raise _Short
