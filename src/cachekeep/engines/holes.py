"""Which engine versions have known holes, from the projects' own release notes. Pure.

A table of what was fixed where. Of holes that only a client with rights that ours lack could use, or that need a module or a
mode that we do not run, there is nothing here. A distribution mends an old version: what its package's changelog names is mended.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

Numbers = tuple[int, ...]


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """One that a client of a cache can use."""

    id: str
    does: str
    grave: bool
    """It may run code, act as somebody else or tamper with others' answers. Any other ends the server or leaks a few bytes."""
    fixed: dict[str, tuple[Numbers, ...]]
    """Engine → the first version without it, for each minor line that was mended. Lines above the newest never had it; of those
    below, the ones that are not named were not mended."""
    since: Numbers = (0,)
    """The first version that has it, or of which the source speaks."""
    source: str

    def is_in(self, engine: str, numbers: Numbers) -> bool:
        """Whether this version has it, as its project left it."""
        fixed = self.fixed.get(engine, ())
        if not fixed or numbers < self.since or numbers[:2] > max(fixed)[:2]:
            return False
        return not any(numbers[:2] == first[:2] and numbers >= first for first in fixed)


_VALKEY = "https://github.com/valkey-io/valkey/releases/tag/"
_OCTOBER_2025: dict[str, tuple[Numbers, ...]] = {
    "valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
    "redis": ((6, 2, 20), (7, 2, 11)),
}
_OCTOBER_2025_SOURCE = "https://redis.io/blog/security-advisory-cve-2025-49844/ " + _VALKEY + "8.0.6"
_FEBRUARY_2026: dict[str, tuple[Numbers, ...]] = {"valkey": ((7, 2, 12), (8, 0, 7), (8, 1, 6), (9, 0, 3))}
_FEBRUARY_2026_SOURCE = "https://www.percona.com/blog/?p=104878 " + _VALKEY + "9.0.3"
_JULY_2026: dict[str, tuple[Numbers, ...]] = {"valkey": ((8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1))}
_NOVEMBER_2026: dict[str, tuple[Numbers, ...]] = {"valkey": ((7, 2, 16), (8, 0, 13), (8, 1, 12), (9, 0, 8), (9, 1, 4))}

HOLES: tuple[Hole, ...] = (
    Hole(
        id="CVE-2025-49844",
        does="a script may run code in the server",
        grave=True,
        fixed=_OCTOBER_2025,
        source=_OCTOBER_2025_SOURCE,
    ),
    Hole(
        id="CVE-2025-46817",
        does="a script may overflow an integer and run code",
        grave=True,
        fixed=_OCTOBER_2025,
        source=_OCTOBER_2025_SOURCE,
    ),
    Hole(
        id="CVE-2025-46818",
        does="a script may run as another user",
        grave=True,
        fixed=_OCTOBER_2025,
        source=_OCTOBER_2025_SOURCE,
    ),
    Hole(
        id="CVE-2025-46819",
        does="a script may read beyond its memory, or end the server",
        grave=False,
        fixed=_OCTOBER_2025,
        source=_OCTOBER_2025_SOURCE,
    ),
    Hole(
        id="CVE-2025-67733",
        does="a script may forge answers to others on its connection",
        grave=True,
        fixed=_FEBRUARY_2026,
        source=_FEBRUARY_2026_SOURCE,
    ),
    Hole(
        id="CVE-2026-21863",
        does="whoever reaches the cluster bus may end the server",
        grave=False,
        fixed=_FEBRUARY_2026,
        source=_FEBRUARY_2026_SOURCE,
    ),
    Hole(
        id="CVE-2026-27623",
        does="anybody may end the server",
        grave=False,
        fixed={"valkey": ((9, 0, 3),)},
        since=(9, 0, 0),
        source=_VALKEY + "9.0.3",
    ),
    Hole(
        id="CVE-2026-63639",
        does="a crafted stream may run code",
        grave=True,
        fixed=_JULY_2026,
        since=(8, 0, 0),
        source=_VALKEY + "9.1.1",
    ),
    Hole(
        id="CVE-2026-56684",
        does="CLIENT KILL over TLS may run code",
        grave=True,
        fixed=_JULY_2026,
        since=(8, 0, 0),
        source=_VALKEY + "9.1.1",
    ),
    Hole(
        id="CVE-2026-130822",
        does="writing to a key that others wait for may end the server",
        grave=False,
        fixed=_NOVEMBER_2026,
        source="https://github.com/valkey-io/valkey/security/advisories/GHSA-3885-pq5f-788j",
    ),
)


def holes(engine: str, numbers: Numbers, mended: Collection[str] = ()) -> tuple[Hole, ...]:
    """The known holes of a version, but for those that were ``mended`` in it (by their ids). The gravest first."""
    found = (hole for hole in HOLES if hole.id not in mended and hole.is_in(engine, numbers))
    return tuple(sorted(found, key=lambda hole: not hole.grave))
