"""The few errors of Cachekeep. Each message says what happened, what was kept and what to do."""

from __future__ import annotations


class CachekeepError(Exception):
    """Base of every error that Cachekeep raises on purpose."""


class ApiError(CachekeepError):
    """A request is refused. Becomes an AWS-shaped fault on the wire.

    ``code`` is the wire code (``CacheClusterNotFound``), or the name of the model's exception shape; the gateway takes the HTTP
    status from the service model and falls back to ``status`` for codes common to all services (``InvalidAction``…).
    """

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


class Conflict(CachekeepError):
    """A compare-and-swap save found another version: somebody else wrote first. Look again, then decide again."""


class LeaseLost(CachekeepError):
    """The lease of a cache went to another holder. Stop at once: nothing that was decided under it may be saved or carried out."""


class EngineMissing(CachekeepError):
    """No installed build satisfies the engine and version asked for. The message says how to get one."""


class OrderFailed(CachekeepError):
    """An engine or the driver refused or failed an effect. Carried to the keeper, which looks again and backs off."""


class Unusable(CachekeepError):
    """Set-up or state cannot be used as it is (data directory locked, database newer than this program, …)."""
