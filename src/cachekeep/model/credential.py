"""Passwords of Cachekeep's own users at the engines of a cache."""

from __future__ import annotations

import msgspec


class Secret(msgspec.Struct, frozen=True):
    """A password. Shows itself to nobody who prints it."""

    value: str

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """One password, from which those of all users of ours come, as it is kept: nothing in it opens anything."""

    serial: int
    sealed: str
    """The password, which only the root key opens."""
    hashes: tuple[tuple[str, str], ...]
    """User → SHA-256 of what its password is by this one, hexadecimal: what engines check by."""

    def hash_of(self, user: str) -> str:
        return dict(self.hashes)[user]
