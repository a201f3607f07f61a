"""What one node says of itself at one moment, when it is asked how it is."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cachekeep.model.moment import Moment


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine says of a node's process. None: it does not say."""

    freeable_bytes: int | None = None
    """How much more the process can have."""
    swap_bytes: int | None = None
    major_faults: int | None = None
    """Since the process began."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """``fields``: those of ``INFO``, or of Memcached's ``stats``."""

    at: Moment
    fields: Mapping[str, str]
    durations: Mapping[str, tuple[tuple[int, int], ...]] = {}
    """Command → how many of its calls took at most so many microseconds, since the process began, ascending."""
    host: Host = Host()

    def number(self, field: str) -> float | None:
        """The value of a field; None where it is not told or is no number."""
        try:
            return float(self.fields[field])
        except (KeyError, ValueError):
            return None
