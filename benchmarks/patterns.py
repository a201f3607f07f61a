"""What the caching patterns cost, and whether they are right, beside the raw client and other libraries.

    python benchmarks/patterns.py [--engine valkey-server] [--markdown docs/benchmarks-patterns.md]

Speed is measured in short rounds that take turns, and the median of the rounds' ratios is shown: on a busy machine the absolute
numbers move, the ratios much less. Libraries that are not installed are left out and said to be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import valkey
import valkey.asyncio

from cachekeep_patterns import AsyncCache, Cache, NearCache, Policy, connect, connect_async

VALUE = {"id": 7, "name": "Ada Lovelace", "tags": ["a", "b"], "text": "x" * 60}
ROUNDS, PER_ROUND = 11, 250
LEASE_SECONDS, SLOW_LOAD_SECONDS = 1.0, 3.0
PROCESSES, CALLERS = 4, 25
BARE = "raw client, no timeouts"


@contextmanager
def server(engine: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [engine, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory], stdout=subprocess.DEVNULL
        )
        try:
            while True:
                with contextlib.suppress(valkey.exceptions.ConnectionError):
                    valkey.Valkey(port=port).ping()
                    break
            yield port
        finally:
            process.kill()
            process.wait()


# --------------------------------------------------------------------------- the contestants

Sync = Callable[[str, Callable[[], Any]], Any]
Async = Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]


def ours(port: int) -> tuple[Sync, Callable[[str], Any]]:
    cache = Cache(connect(f"valkey://127.0.0.1:{port}"), namespace="b", policy=Policy(lease_seconds=LEASE_SECONDS))
    return cache.get, cache.invalidate


def dogpile(port: int, *, locked: bool = False) -> tuple[Sync, Callable[[str], Any]]:
    from dogpile.cache import make_region

    arguments: dict[str, Any] = {"host": "127.0.0.1", "port": port}
    if locked:
        arguments |= {"distributed_lock": True, "lock_timeout": LEASE_SECONDS, "thread_local_lock": False}
    region = make_region().configure("dogpile.cache.valkey", expiration_time=300, arguments=arguments)
    return lambda key, load: region.get_or_create(key, load), region.delete


def ours_async(port: int) -> tuple[Async, Callable[[str], Any]]:
    cache = AsyncCache(connect_async(f"valkey://127.0.0.1:{port}"), namespace="b", policy=Policy(lease_seconds=LEASE_SECONDS))
    return cache.get, cache.invalidate


def cashews(port: int, *, locked: bool = False) -> tuple[Async, Callable[[str], Any]]:
    from cashews import Cache as Cashews

    cache = Cashews()
    cache.setup(f"redis://127.0.0.1:{port}")

    @cache(ttl=300, key="{key}", **({"lock": True} if locked else {}))
    async def get(key: str, load: Callable[[], Awaitable[Any]]) -> Any:
        return await load()

    return get, cache.delete


def aiocache(port: int, *, locked: bool = False) -> tuple[Async, Callable[[str], Any]]:
    from aiocache import Cache as Aio
    from aiocache import cached, cached_stampede
    from aiocache.serializers import JsonSerializer

    options: dict[str, Any] = {
        "cache": Aio.REDIS,
        "endpoint": "127.0.0.1",
        "port": port,
        "serializer": JsonSerializer(),
        "ttl": 300,
    }
    options["key_builder"] = lambda _function, key, _load: key
    wrap = cached_stampede(lease=LEASE_SECONDS, **options) if locked else cached(**options)

    @wrap
    async def get(key: str, load: Callable[[], Awaitable[Any]]) -> Any:
        return await load()

    plain = Aio(Aio.REDIS, endpoint="127.0.0.1", port=port, serializer=JsonSerializer())
    return get, plain.delete


SYNC: dict[str, tuple[str, Callable[[int], tuple[Sync, Callable[[str], Any]]]]] = {
    "cachekeep": ("valkey", ours),
    "dogpile.cache": ("dogpile.cache", dogpile),
    "dogpile.cache, distributed_lock": ("dogpile.cache", lambda port: dogpile(port, locked=True)),
}
ASYNC: dict[str, tuple[str, Callable[[int], tuple[Async, Callable[[str], Any]]]]] = {
    "cachekeep async": ("valkey", ours_async),
    "cashews": ("cashews", cashews),
    "cashews, lock": ("cashews", lambda port: cashews(port, locked=True)),
    "aiocache": ("aiocache", aiocache),
    "aiocache, cached_stampede": ("aiocache", lambda port: aiocache(port, locked=True)),
}


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --------------------------------------------------------------------------- speed


def per_call(function: Callable[[], Any], calls: int = PER_ROUND) -> float:
    """Microseconds."""
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls * 1e6


async def per_await(function: Callable[[], Awaitable[Any]], calls: int = PER_ROUND) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        await function()
    return (time.perf_counter() - began) / calls * 1e6


def table(rounds: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """(median µs, median ratio to `raw` of the same round) by name."""
    return {
        name: (
            statistics.median(times),
            statistics.median(mine / raw for mine, raw in zip(times, rounds["raw client"], strict=True)),
        )
        for name, times in rounds.items()
    }


def numbered(prefix: str) -> Callable[[], str]:
    count = iter(range(10**9))
    return lambda: f"{prefix}{next(count)}"


def sync_speed(port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    raw, bare = connect(f"valkey://127.0.0.1:{port}"), valkey.Valkey(port=port)
    encoded = msgspec.json.encode(VALUE)
    raw.set("raw", encoded)
    hits: dict[str, Callable[[], Any]] = {"raw client": lambda: raw.get("raw"), BARE: lambda: bare.get("raw")}
    fresh = numbered("raw-miss")

    def raw_miss() -> None:
        key = fresh()
        if raw.get(key) is None:
            raw.set(key, msgspec.json.encode(VALUE), ex=300)

    misses: dict[str, Callable[[], Any]] = {"raw client": raw_miss}
    for name, (package, make) in SYNC.items():
        if installed(package):
            get, _ = make(port)
            get(f"hit-{name}", lambda: VALUE)
            key = numbered(f"{name.split(',')[0]}-{len(misses)}-")
            hits[name] = lambda get=get, hit=f"hit-{name}": get(hit, lambda: VALUE)  # type: ignore[misc]
            misses[name] = lambda get=get, key=key: get(key(), lambda: VALUE)  # type: ignore[misc]
    return tuple(_sync_rounds(one) for one in (hits, misses))  # type: ignore[return-value]


def _sync_rounds(functions: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():
        per_call(function, 50)
        rounds[name].clear()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            rounds[name].append(per_call(function))
    return table(rounds)


async def async_speed(port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    raw, bare = connect_async(f"valkey://127.0.0.1:{port}"), valkey.asyncio.Valkey(port=port)
    await raw.set("raw", msgspec.json.encode(VALUE))
    fresh = numbered("araw-miss")

    async def value() -> Any:
        return VALUE

    async def raw_miss() -> None:
        key = fresh()
        if await raw.get(key) is None:
            await raw.set(key, msgspec.json.encode(VALUE), ex=300)

    hits: dict[str, Callable[[], Awaitable[Any]]] = {
        "raw client": lambda: raw.get("raw"),
        BARE: lambda: bare.get("raw"),
    }
    misses: dict[str, Callable[[], Awaitable[Any]]] = {"raw client": raw_miss}
    for name, (package, make) in ASYNC.items():
        if installed(package):
            get, _ = make(port)
            await get(f"hit-{name}", value)
            key = numbered(f"{name}-{len(misses)}-")
            hits[name] = lambda get=get, hit=f"hit-{name}": get(hit, value)  # type: ignore[misc]
            misses[name] = lambda get=get, key=key: get(key(), value)  # type: ignore[misc]
    tables = []
    for functions in (hits, misses):
        rounds: dict[str, list[float]] = {name: [] for name in functions}
        for function in functions.values():
            await per_await(function, 50)
        for _ in range(ROUNDS):
            for name, function in functions.items():
                rounds[name].append(await per_await(function))
        tables.append(table(rounds))
    return tables[0], tables[1]


def near_speed(port: int) -> float:
    client = connect(f"valkey://127.0.0.1:{port}")
    near = NearCache(client)
    cache = Cache(client, namespace="near", near=near)
    near.wait_trusted()
    while not cache.counters.near_hits:
        cache.get("k", lambda: VALUE)
    before = cache.counters.near_hits
    best = statistics.median(per_call(lambda: cache.get("k", dict), 20_000) for _ in range(7))
    assert cache.counters.near_hits - before == 140_000, "not every call was answered from memory"
    near.close()
    return best


def memory_per_key(port: int, keys: int = 500) -> dict[str, int]:
    """Bytes of engine memory for one cached value of about 120 bytes of JSON."""
    admin = valkey.Valkey(port=port)
    found = {}

    def measure(name: str, fill: Callable[[], Any]) -> None:
        admin.flushall()
        fill()
        stored = list(admin.scan_iter(count=1000))
        assert len(stored) >= keys
        found[name] = round(sum(admin.memory_usage(key) for key in stored) / keys)

    def raw() -> None:
        for i in range(keys):
            admin.set(f"b:key-{i:06}", msgspec.json.encode(VALUE), ex=300)

    measure("raw client", raw)
    for name, (package, make) in SYNC.items():
        if installed(package) and "," not in name:
            get, _ = make(port)

            def fill(get: Sync = get) -> None:
                for i in range(keys):
                    get(f"key-{i:06}", lambda: VALUE)

            measure(name, fill)
    for name, (package, amake) in ASYNC.items():
        if installed(package) and "," not in name:

            async def afill(amake: Any = amake) -> None:
                get, _ = amake(port)

                async def value() -> Any:
                    return VALUE

                for i in range(keys):
                    await get(f"key-{i:06}", value)

            measure(name, lambda afill=afill: asyncio.run(afill()))  # type: ignore[misc]
    return found


# --------------------------------------------------------------------------- right or wrong


def worker(name: str, port: int, log: str, seconds: float) -> None:
    """One process of a stampede: so many callers at once for one key; every load leaves a line."""

    def note() -> None:
        with open(log, "ab", buffering=0) as out:
            out.write(b"%d\n" % os.getpid())

    if name in SYNC:
        get, _ = SYNC[name][1](port)

        def load() -> Any:
            note()
            time.sleep(seconds)
            return VALUE

        get("warm", lambda: 1)
        print("ready", flush=True)
        sys.stdin.readline()
        with ThreadPoolExecutor(CALLERS) as pool:
            got = list(pool.map(lambda _: get("stampede", load), range(CALLERS)))
    else:

        async def main() -> list[Any]:
            get, _ = ASYNC[name][1](port)

            async def load() -> Any:
                note()
                await asyncio.sleep(seconds)
                return VALUE

            async def one() -> Any:
                return 1

            await get("warm", one)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            return list(await asyncio.gather(*(get("stampede", load) for _ in range(CALLERS))))

        got = asyncio.run(main())
    print(json.dumps(sum(value == VALUE for value in got)), flush=True)


def stampede(name: str, port: int, seconds: float) -> tuple[int, int, float]:
    """(loads, callers that got the right value, seconds until the last one had it)."""
    valkey.Valkey(port=port).flushall()
    with tempfile.NamedTemporaryFile() as log:
        argv = [sys.executable, __file__, "--worker", name, str(port), log.name, str(seconds)]
        running = [
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(PROCESSES)
        ]
        for one in running:
            assert one.stdout is not None
            one.stdout.readline()
        began = time.monotonic()
        for one in running:
            assert one.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                one.stdin.write("\n")
                one.stdin.flush()
        right = 0
        for one in running:
            try:
                out, _ = one.communicate(timeout=60)
                right += json.loads(out.strip() or "0")
            except subprocess.TimeoutExpired:
                one.kill()
                one.communicate()
        return len(log.read().split()), right, time.monotonic() - began


def old_value_after_invalidation(name: str, port: int) -> bool:
    """A load reads version 1; version 2 is committed and the key is invalidated; the load ends.
    Does a later reader get version 1?"""
    valkey.Valkey(port=port).flushall()
    if name in SYNC:
        (get, _), (get2, delete) = SYNC[name][1](port), SYNC[name][1](port)
        began, gate = threading.Event(), threading.Event()

        def slow() -> int:
            began.set()
            gate.wait(10)
            return 1

        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(get, "k", slow)
            began.wait(10)
            delete("k")
            gate.set()
            loading.result()
        return bool(get2("k", lambda: 2) != 2)

    async def main() -> bool:
        (get, _), (get2, delete) = ASYNC[name][1](port), ASYNC[name][1](port)
        began, gate = asyncio.Event(), asyncio.Event()

        async def slow() -> int:
            began.set()
            await gate.wait()
            return 1

        async def newest() -> int:
            return 2

        loading = asyncio.create_task(get("k", slow))  # type: ignore[arg-type]
        await asyncio.wait_for(began.wait(), 10)
        await delete("k")
        gate.set()
        await loading
        return bool(await get2("k", newest) != 2)

    return asyncio.run(main())


# --------------------------------------------------------------------------- the report


def _cells(timing: tuple[float, float] | None) -> str:
    return "| " if timing is None else f"{timing[0]:.0f} | {timing[1]:.2f} ×"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--engine", default=next((e for e in ("valkey-server", "redis-server") if shutil.which(e)), ""))
    arguments.add_argument("--markdown", default="docs/benchmarks-patterns.md", help="write the report to this file too")
    arguments.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        name, port, log, seconds = options.worker
        worker(name, int(port), log, float(seconds))
        return
    if not options.engine:
        sys.exit("needs valkey-server or redis-server on the PATH")
    from benchmarks.sessions import rows as session_rows  # not needed by workers, and slow to import

    lines: list[str] = []

    def say(text: str = "") -> None:
        print(text, flush=True)
        lines.append(text)

    version = subprocess.run([options.engine, "--version"], capture_output=True, text=True, check=True).stdout.split()
    packages = ["valkey", "dogpile.cache", "cashews", "aiocache"]
    missing = [package for package in packages if not installed(package)]
    say("# What the patterns cost, and whether they are right")
    say()
    say("    make bench-patterns")
    say()
    say(
        f"{version[0]} {' '.join(v for v in version if v.startswith('v='))}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores; "
    )
    say(", ".join(f"{package} {installed(package)}" for package in packages if package not in missing) + ".")
    if missing:
        say(f"Not installed, so left out: {', '.join(missing)}.")
    say(
        "Everything on one machine over loopback, which was not idle. Ratios are medians over rounds that take turns. "
        "`raw client` is"
    )
    say(
        "a GET by the client that `connect` makes (valkey-py with timeouts and retries), and for a miss its GET and SET; "
        "it returns bytes,"
    )
    say("the others the decoded value. The value is a small JSON object.")
    with server(options.engine) as port:
        near = near_speed(port)
        (hits, misses), (ahits, amisses) = sync_speed(port), asyncio.run(async_speed(port))
        memory = memory_per_key(port)
        say()
        say("## One call")
        say()
        say("| | hit, µs | of raw | miss, µs | of raw | engine bytes per key |")
        say("|---|---:|---:|---:|---:|---:|")
        for hit, miss, kind in ((hits, misses, "threads"), (ahits, amisses, "asyncio")):
            for name in hit:
                shown = f"{name}, {kind}" if name.startswith("raw client") else name
                bytes_ = memory.get(name) if name != "raw client" or kind == "threads" else None
                say(f"| {shown} | {hit[name][0]:.0f} | {hit[name][1]:.2f} × | {_cells(miss.get(name))} | {bytes_ or ''} |")
        say(f"| cachekeep, near cache | {near:.2f} | | | | |")
        say()
        say("## Right or wrong")
        say()
        say(
            f"{PROCESSES} processes × {CALLERS} callers ask for one missing key at once. The right number of loads is 1. "
            "In the second"
        )
        say(
            f"column the loader takes {SLOW_LOAD_SECONDS:g} s and the lock's lease, where there is one to set, "
            f"is {LEASE_SECONDS:g} s."
        )
        say("Last column: a load that began before an invalidation ends after it; does a later reader get what it loaded?")
        say()
        say("| | loads, loader 0.2 s | loads, loader outlives lease | after an invalidation |")
        say("|---|---|---|---|")
        wrong: dict[str, bool] = {}
        for name, (package, _) in [*SYNC.items(), *ASYNC.items()]:
            if not installed(package):
                continue
            cells = []
            for seconds in (0.2, SLOW_LOAD_SECONDS):
                loads, right, took = stampede(name, port, seconds)
                served = "" if right == PROCESSES * CALLERS else f", only {right} of {PROCESSES * CALLERS} served"
                verdict = "" if loads == 1 and not served else "**wrong**: "
                wrong[name] = wrong.get(name, False) or bool(verdict)
                cells.append(f"{verdict}{loads} in {took:.1f} s{served}")
            old = old_value_after_invalidation(name, port)
            wrong[name] = wrong[name] or old
            cells.append("**wrong**: old value" if old else "new value")
            say(f"| {name} | {' | '.join(cells)} |")
        say()
        say("## Sessions")
        say()
        say(
            "A whole request of a web application, anonymous, without network. Races: two requests of one session "
            "that change different"
        )
        say("keys; a request that ends after the log-out of its session.")
        say()
        say("| store | read, µs | change, µs | bytes per session | lost updates | revived after log-out |")
        say("|---|---:|---:|---:|---:|---:|")
        for row in session_rows():
            races = [f"{'**wrong**: ' if n else ''}{n} of {row.races}" for n in (row.lost_updates, row.revivals)]
            say(
                f"| {row.store} | {row.read_microseconds:.0f} | {row.change_microseconds:.0f} | "
                f"{row.bytes_per_session} | {' | '.join(races)} |"
            )
        say()
        say("## Targets")
        say()
        targets = {
            f"a hit costs at most 1.15 × the raw call (threads {hits['cachekeep'][1]:.2f} ×)": hits["cachekeep"][1] <= 1.15,
            f"the same under asyncio ({ahits['cachekeep async'][1]:.2f} ×)": ahits["cachekeep async"][1] <= 1.15,
            f"a near-cache hit costs at most 3 µs ({near:.2f} µs)": near <= 3.0,
            "one load under a stampede, nothing old after an invalidation": not (wrong["cachekeep"] or wrong["cachekeep async"]),
        }
        for text, met in targets.items():
            say(f"- {'met' if met else '**missed**'}: {text}")
    if options.markdown:
        with open(options.markdown, "w") as out:
            out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
