"""Quotas: one value each, with the error of who goes beyond it. Each service has a table of its own."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cachekeep.wire.faults import ApiError


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """How many of something there may be, inclusive; None: as many as there is room for."""

    default: int | None
    code: str
    message: str
    """``{most}`` stands for the quota, ``{count}`` for what there would be."""

    def check(self, count: int, others: Mapping[Quota, int | None]) -> None:
        """Raises ApiError with the quota's code if ``count`` is more than there may be.

        ``others``: what this installation has set.
        """
        most = others.get(self, self.default)
        if most is not None and count > most:
            raise ApiError(self.code, self.message.format(most=most, count=count))
