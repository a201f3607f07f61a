"""A hit in memory, and how fast it notices another writer. Usage: patterns_near_cache.py [URL]"""

from __future__ import annotations

import os
import sys
import time

from cachekeep_patterns import Cache, NearCache, connect

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CACHE_URL", "valkey://127.0.0.1:6379")
client = connect(url)
near = NearCache(client)
mine = Cache(client, namespace="example", near=near)
other = Cache(connect(url), namespace="example")  # somebody else
near.wait_trusted()

mine.invalidate("k")
while not mine.counters.near_hits:
    mine.get("k", lambda: "old")
began = time.perf_counter()
for _ in range(100_000):
    mine.get("k", lambda: "old")
print(f"a near hit: {(time.perf_counter() - began) * 10:.2f} µs")
other.write("k", lambda: "new")
began = time.perf_counter()
while mine.get("k", lambda: "new") != "new":
    pass
print(f"another writer's value was seen {(time.perf_counter() - began) * 1000:.2f} ms after its write returned")
near.close()
