"""What the patterns raise. Each message says what happened and what was kept."""

from __future__ import annotations


class PatternError(Exception):
    """Base of everything `cachekeep_patterns` raises on purpose."""


class CacheDown(PatternError):
    """The cache could not be asked (unreachable, timed out, or its breaker is open). The cause is chained."""


class Overloaded(PatternError):
    """Too many loads are already running in this process and no place came free in time; the database was not asked."""


class LoadTimeout(PatternError):
    """Another caller is still loading this key and the patience given to `wait_seconds` ran out."""


class UncacheableArgument(PatternError, TypeError):
    """An argument has no stable text form, so no key can be built from it; give `key=` a template or a function."""


class Uncodable(PatternError):
    """A value cannot be encoded, or stored bytes cannot be decoded (other codec, other secret, cut short)."""


class LockLost(PatternError):
    """The lock is no longer ours. Anything done under it from now on must be refused by its fencing token."""


class LockBusy(PatternError):
    """The lock could not be had in the time given."""


class Backlogged(PatternError):
    """The write-behind queue is full; the value was neither queued nor cached."""


class DuplicateRequest(PatternError):
    """Another request with this idempotency key is still running."""


class KeyReused(PatternError):
    """The idempotency key was used before with other arguments; nothing was done."""


class UnseenChange(PatternError):
    """A transaction changed rows in a way that does not tell which cached values change with them; it was not committed."""


class AnswerNotKept(PatternError):
    """The request with this idempotency key was carried out; it is not carried out again, and its answer could not be kept."""


class RecursiveLoad(PatternError):
    """A loader asks for its own key, directly or through other loads that wait for it; waiting would never end."""
