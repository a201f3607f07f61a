"""Lock, rate limiter, leaderboard, idempotency key. Usage: patterns_small.py [URL]"""

from __future__ import annotations

import os
import sys

from cachekeep_patterns import connect
from cachekeep_patterns.primitives import Idempotency, Leaderboard, Lock, RateLimiter

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CACHE_URL", "valkey://127.0.0.1:6379")
client = connect(url)
run = os.getpid()

with Lock(client, "example-report", lease_seconds=5) as fence:
    print("the lock is ours; its fence is", fence)
limiter = RateLimiter(client, f"example-api-{run}", limit=3, per_seconds=60)
print([bool(limiter.take("ada")) for _ in range(5)], limiter.take("ada").retry_after_seconds)
board = Leaderboard(client, f"example-game-{run}")
for member, score in (("ada", 10), ("grace", 30), ("emmy", 20)):
    board.record(member, score)
print(board.top(2), board.standing("ada"))
requests = Idempotency(client, namespace=f"example-{run}", keep_seconds=60)
print([requests.run("order-1", lambda: {"receipt": 7}, scope="tenant-7") for _ in range(2)])
