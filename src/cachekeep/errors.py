"""The few errors of Cachekeep. Each message says what happened, what was kept and what to do."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal obeys: an engine's words and a log's may be a client's.

    Control characters, and those that turn the direction of writing, become what Python writes for them (``\\x1b``).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class CachekeepError(Exception):
    """Base of every error that Cachekeep raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidValue(CachekeepError):
    """What was asked for cannot be: there is no such name, or it is not in the range. The message says what there is."""


class InvalidCombination(CachekeepError):
    """What was asked for does not go together, or not with what there is."""


class Conflict(CachekeepError):
    """A compare-and-swap save found another version: somebody else wrote first. Look again, then decide again."""


class Unsealable(CachekeepError):
    """A secret cannot be sealed or opened: the root key is lost, or another. Nothing is made in its place."""


class LeaseLost(CachekeepError):
    """The lease of a cache went to another holder. Stop at once: nothing that was decided under it may be saved or carried out."""


class EngineMissing(CachekeepError):
    """No installed build satisfies the engine and version asked for. The message says how to get one."""


class OrderFailed(CachekeepError):
    """An engine or the driver refused or failed an effect. Carried to the keeper, which looks again and backs off."""


class Unusable(CachekeepError):
    """Set-up or state cannot be used as it is (data directory locked, database newer than this program, …)."""


class VaultAway(CachekeepError):
    """The vault cannot be reached, refuses, or has no room. What it holds is as it was; what was being written is not in it."""


class Damaged(CachekeepError):
    """What a vault holds is not what was put there: bits flipped, an end cut off, another's in its place. None of it is used."""


class NotInVault(CachekeepError):
    """The vault holds no such thing."""
