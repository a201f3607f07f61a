"""Keeps writing while you kill, restart or fail over the cache; prints what it cost.

Usage: patterns_topology.py [URL] [READER-URL]
"""

from __future__ import annotations

import os
import sys
import time

from cachekeep_patterns import connect

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CACHE_URL", "valkey://127.0.0.1:6379")
reader = sys.argv[2] if len(sys.argv) > 2 else None
client = connect(url, reader=reader, timeout_seconds=0.5, deadline_seconds=30, read_your_writes_seconds=1)

longest = 0.0
for i in range(int(os.environ.get("ROUNDS", "50"))):
    began = time.monotonic()
    client.set("example:beat", i)
    assert int(client.get("example:beat")) == i  # our own write, also with a reader
    longest = max(longest, time.monotonic() - began)
    time.sleep(0.02)
print(f"every write was read back; the slowest took {longest * 1000:.1f} ms")
