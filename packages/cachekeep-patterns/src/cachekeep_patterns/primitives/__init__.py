"""Small things people expect beside a cache: a lock, a semaphore, a rate limiter, a leaderboard, idempotency keys.
Each in two faces, X and AsyncX."""

from cachekeep_patterns.primitives.idempotency import AsyncIdempotency, Idempotency
from cachekeep_patterns.primitives.leaderboard import AsyncLeaderboard, Leaderboard, Standing
from cachekeep_patterns.primitives.lock import AsyncLock, AsyncSemaphore, Lock, Semaphore
from cachekeep_patterns.primitives.rate import AsyncRateLimiter, Decision, RateLimiter

__all__ = [
    "AsyncIdempotency",
    "AsyncLeaderboard",
    "AsyncLock",
    "AsyncRateLimiter",
    "AsyncSemaphore",
    "Decision",
    "Idempotency",
    "Leaderboard",
    "Lock",
    "RateLimiter",
    "Semaphore",
    "Standing",
]
