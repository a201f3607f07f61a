"""Who wants to hear of changes, in this process, and of what."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Touched:
    """The caches that a transaction touched: their listeners are called when it has committed."""

    def __init__(self) -> None:
        self.told_only: dict[str, bool] = {}
        """By uid, in the order in which they were touched. True: nothing of it but its condition is new."""
        self.committed = False

    def add(self, uid: str, *, told: bool = False) -> None:
        """The cache was changed, or only its condition was ``told``."""
        self.told_only[uid] = told and self.told_only.get(uid, True)


class Wakes:
    """Callbacks, called in the order in which they came."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[str], None]] = {}

    def add(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call it from now on; returns what ends that."""
        key = object()
        self._callbacks[key] = callback
        return lambda: void(self._callbacks.pop(key, None))

    def __call__(self, uid: str) -> None:
        for callback in tuple(self._callbacks.values()):
            try:
                callback(uid)
            except Exception:
                # What was committed is committed: a listener's fault must not look like a failed save.
                log.exception("a listener for changes failed")


def void(_: object) -> None:
    """Nothing."""
