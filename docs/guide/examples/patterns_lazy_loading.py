"""Fifty callers, one slow query. Usage: patterns_lazy_loading.py [URL]"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cachekeep_patterns import Cache, Policy, connect

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CACHE_URL", "valkey://127.0.0.1:6379")
cache = Cache(connect(url), namespace="example", policy=Policy(fresh_seconds=60, stale_seconds=30))


@dataclass
class User:
    id: int
    name: str


@cache.cached(key="user:{user_id}", tags=["users"])
def user(user_id: int) -> User:
    time.sleep(0.3)  # a slow query
    return User(user_id, "Ada")


user.invalidate(7)
with ThreadPoolExecutor(50) as pool:
    users = list(pool.map(user, [7] * 50))
print(f"{len(users)} callers, {cache.counters.loads} load, all got {users[0]}")
cache.invalidate(tags=["users"])
user(7)
print(f"after an invalidation by tag: {cache.counters.loads} loads")
print({name: count for name, count in cache.counters.snapshot().items() if count})
