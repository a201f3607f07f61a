"""Writers and readers with a client's own defaults: redis-py or valkey-py. Says in JSON what an application would have felt.

    python writers.py CLIENT cluster|single ADDRESS:PORT

Four writers set keys ``CLIENT:<writer>:<n>`` to ``<n>`` and read each back, until standard input ends.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
import time
from typing import Any

WRITERS = 4
PAUSE_SECONDS = 0.01
_VARYING = re.compile(r":\d{5}\b|\b\d+\.\d+\.\d+\.\d+")
CLIENTS = {
    "redis-py cluster": "redis.RedisCluster",
    "redis-py single": "redis.Redis",
    "valkey-py cluster": "valkey.ValkeyCluster",
    "valkey-py single": "valkey.Valkey",
}


def connected(name: str, mode: str, host: str, port: int) -> Any:
    """A client with its defaults."""
    module, _, kind = CLIENTS[f"{name} {mode}"].partition(".")
    return getattr(importlib.import_module(module), kind)(host=host, port=port)


def write(name: str, writer: int, client: Any, over: threading.Event, told: list[dict[str, Any]]) -> None:
    """Until it is over."""
    errors: dict[str, int] = {}
    unacknowledged: list[int] = []
    asked, stall, stall_at, last = 0, 0.0, 0.0, time.time()
    while True:
        ended = over.is_set()
        n, acknowledged = asked, False
        if not ended:
            asked += 1
            try:
                client.set(f"{name}:{writer}:{n}", n)
                acknowledged = True
            except Exception as error:
                unacknowledged.append(n)
                text = f"set: {type(error).__name__}: {_VARYING.sub('…', str(error))}"
                errors[text] = errors.get(text, 0) + 1
        if acknowledged or ended:
            if time.time() - last > stall:
                stall, stall_at = time.time() - last, last
            last = time.time()
        if ended:
            break
        if acknowledged:
            try:
                if client.get(f"{name}:{writer}:{n}") != b"%d" % n:
                    errors["get: another value"] = errors.get("get: another value", 0) + 1
            except Exception as error:
                text = f"get: {type(error).__name__}: {_VARYING.sub('…', str(error))}"
                errors[text] = errors.get(text, 0) + 1
        time.sleep(PAUSE_SECONDS)
    told.append(
        {
            "writer": writer,
            "asked": asked,
            "unacknowledged": unacknowledged,
            "errors": errors,
            "stall_seconds": stall,
            "stall_at": stall_at,
        }
    )


def main() -> None:
    """As its usage says."""
    name, mode, address = sys.argv[1:]
    host, _, port = address.rpartition(":")
    client = connected(name, mode, host, int(port))
    client.set(f"{name}:first", "1")
    print("writing", flush=True)
    over, told = threading.Event(), list[dict[str, Any]]()
    threads = [threading.Thread(target=write, args=(name, n, client, over, told)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
