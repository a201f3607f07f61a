"""One load per expiry: 50 callers, 8 processes, a loader slower than its lease, a loader that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import valkey

from cachekeep_patterns import AsyncCache, Cache, LoadTimeout, Policy, connect, connect_async
from patterns_rig.servers import Server, wait_for
from patterns_rig.stalls import unless_loop_stalled, unless_stalled

CALLERS = 50
UNHURRIED = Policy(fresh_seconds=60, lease_seconds=60)
"""No machine is so slow that this lease lapses."""
OUTLIVES = 2.5
"""So many leases. Memcached counts whole seconds: what lives for a lease of 1 s there lives for less than 2."""


class Counted:
    """A loader that counts its runs and takes ``seconds``."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.runs = 0
        self.seconds = seconds
        self._counting = threading.Lock()

    def __call__(self) -> dict[str, int]:
        with self._counting:
            self.runs += 1
            run = self.runs
        time.sleep(self.seconds)
        return {"run": run}

    async def later(self) -> dict[str, int]:
        self.runs += 1
        run = self.runs
        await asyncio.sleep(self.seconds)
        return {"run": run}


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


@pytest.fixture(params=["valkey", "memcached"])
def cache_url(request: pytest.FixtureRequest) -> str:
    server = request.getfixturevalue("server" if request.param == "valkey" else "memory")
    return url(server, request.param)


def test_threads_load_once(cache_url: str) -> None:
    cache = Cache(connect(cache_url), policy=UNHURRIED)
    load = Counted()
    with ThreadPoolExecutor(CALLERS) as pool:
        got = list(pool.map(lambda _: cache.get("k", load), range(CALLERS)))
    assert load.runs == 1
    assert got == [{"run": 1}] * CALLERS
    assert cache.get("k", load) == {"run": 1}
    assert cache.counters.loads == 1


def test_threads_load_once_though_the_loader_outlives_the_lease(cache_url: str) -> None:
    clients = [connect(cache_url, timeout_seconds=30) for _ in range(2)]

    def attempt(lease_seconds: float) -> None:
        caches = [Cache(client, policy=Policy(fresh_seconds=60, lease_seconds=lease_seconds)) for client in clients]
        key, load = f"k{lease_seconds}", Counted(OUTLIVES * lease_seconds)
        with ThreadPoolExecutor(CALLERS) as pool:
            got = list(pool.map(lambda i: caches[i % 2].get(key, load), range(CALLERS)))
        assert load.runs == 1
        assert got == [{"run": 1}] * CALLERS

    unless_stalled(connect(cache_url, timeout_seconds=30), 1, attempt)


async def test_tasks_load_once(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), policy=UNHURRIED)
    load = Counted()
    got = await asyncio.gather(*(cache.get("k", load.later) for _ in range(CALLERS)))
    assert load.runs == 1
    assert got == [{"run": 1}] * CALLERS


async def test_tasks_load_once_though_the_loader_outlives_the_lease(server: Server) -> None:
    clients = [connect_async(url(server), timeout_seconds=30) for _ in range(2)]

    async def attempt(lease_seconds: float) -> None:
        caches = [AsyncCache(client, policy=Policy(fresh_seconds=60, lease_seconds=lease_seconds)) for client in clients]
        key, load = f"k{lease_seconds}", Counted(OUTLIVES * lease_seconds)
        got = await asyncio.gather(*(caches[i % 2].get(key, load.later) for i in range(CALLERS)))
        assert load.runs == 1
        assert got == [{"run": 1}] * CALLERS

    await unless_loop_stalled(connect_async(url(server), timeout_seconds=30), 1, attempt)


def test_separate_caches_in_one_process_share_one_load(cache_url: str) -> None:
    """Nothing in process memory joins them: only the claim on the server does."""
    caches = [Cache(connect(cache_url), policy=UNHURRIED) for _ in range(10)]
    load = Counted(0.3)
    with ThreadPoolExecutor(CALLERS) as pool:
        got = list(pool.map(lambda i: caches[i % 10].get("k", load), range(CALLERS)))
    assert load.runs == 1
    assert got == [{"run": 1}] * CALLERS


async def test_a_cancelled_caller_does_not_take_the_load_with_it(server: Server) -> None:
    cache = AsyncCache(connect_async(url(server)), policy=UNHURRIED)
    runs, loading, loaded = 0, asyncio.Event(), asyncio.Event()

    async def load() -> int:
        nonlocal runs
        runs += 1
        loading.set()
        await loaded.wait()
        return runs

    first = asyncio.create_task(cache.get("k", load))
    await loading.wait()
    second = asyncio.create_task(cache.get("k", load))
    while not cache.counters.waits:
        await asyncio.sleep(0.001)
    first.cancel()
    loaded.set()
    assert await second == 1
    assert runs == 1


WORKER = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from cachekeep_patterns import Cache, Policy, connect
url, log, seconds, lease, callers = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
cache = Cache(connect(url, timeout_seconds=30), policy=Policy(fresh_seconds=60, lease_seconds=lease))
def load():
    with open(log, "ab", buffering=0) as out:
        out.write(b"%d\\n" % os.getpid())
    time.sleep(seconds)
    return os.getpid()
cache.get("warm-up", lambda: 1)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(callers) as pool:
    print(*set(pool.map(lambda _: cache.get(sys.argv[6], load), range(callers))), flush=True)
"""


def workers(
    count: int, cache_url: str, log: Path, seconds: float, lease: float, callers: int, key: str = "k"
) -> list[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", WORKER, cache_url, str(log), str(seconds), str(lease), str(callers), key]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
    return started


def go(worker: subprocess.Popen[bytes]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(b"\n")
    worker.stdin.flush()


def results(running: list[subprocess.Popen[bytes]]) -> set[bytes]:
    return {value for one in running for value in one.communicate(timeout=60)[0].split()}


def test_eight_processes_load_once_though_the_loader_outlives_the_lease(cache_url: str, tmp_path: Path) -> None:

    def attempt(lease_seconds: float) -> None:
        log = tmp_path / f"loads{lease_seconds}"
        running = workers(8, cache_url, log, lease_seconds + 1.5, lease_seconds, 7, key=log.name)
        for one in running:
            go(one)
        got = results(running)
        assert len(log.read_bytes().split()) == 1
        assert got == set(log.read_bytes().split())

    unless_stalled(connect(cache_url, timeout_seconds=30), 2, attempt)


def test_a_killed_loader_is_replaced_by_exactly_one_other(cache_url: str, tmp_path: Path) -> None:
    log = tmp_path / "loads"
    log.touch()
    (victim,) = workers(1, cache_url, log, 600, 1.0, 1)
    others = workers(4, cache_url, log, 0.5, UNHURRIED.lease_seconds, 5)
    go(victim)
    wait_for(log.read_bytes, "the first load to begin")
    for one in others:
        go(one)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    got = results(others)
    loads = log.read_bytes().split()
    assert len(loads) == 2
    assert int(loads[0]) == victim.pid
    assert got == {loads[1]}


def test_a_loader_frozen_beyond_its_lease_may_not_fill(server: Server, tmp_path: Path) -> None:
    """SIGSTOP stops its renewals too. The successor's value stays when it wakes up."""
    log = tmp_path / "loads"
    log.touch()
    (frozen,) = workers(1, url(server), log, 3.0, 1.0, 1)
    (other,) = workers(1, url(server), log, 0.0, UNHURRIED.lease_seconds, 1)
    go(frozen)
    wait_for(log.read_bytes, "the first load to begin")
    os.kill(frozen.pid, signal.SIGSTOP)
    go(other)
    assert results([other]) == {str(other.pid).encode()}
    os.kill(frozen.pid, signal.SIGCONT)
    frozen.communicate(timeout=30)
    assert Cache(connect(url(server))).get("k", lambda: 0) == other.pid


def test_expiry_again_loads_once(server: Server) -> None:
    cache = Cache(connect(url(server)), policy=UNHURRIED)
    load = Counted(0.02)
    admin = valkey.Valkey(port=server.port)
    for expiry in range(1, 4):
        with ThreadPoolExecutor(20) as pool:
            got = list(pool.map(lambda _: cache.get("k", load), range(20)))
        assert load.runs == expiry
        assert got == [{"run": expiry}] * 20
        assert admin.pexpire("k", 1)
        wait_for(lambda: not admin.exists("k"), "the entry to expire")


def test_patience_ends_with_an_error_and_not_with_a_second_load(server: Server) -> None:
    patient = Cache(connect(url(server)), policy=UNHURRIED)
    impatient = Cache(connect(url(server)), policy=Policy(wait_seconds=0.2))
    runs, loading, tried = 0, threading.Event(), threading.Event()

    def load() -> int:
        nonlocal runs
        runs += 1
        loading.set()
        tried.wait()
        return runs

    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(patient.get, "k", load)
        assert loading.wait(30)
        try:
            with pytest.raises(LoadTimeout):
                impatient.get("k", load)
        finally:
            tried.set()
        assert loaded.result() == 1
    assert runs == 1


def test_a_failing_loader_frees_the_key_at_once(cache_url: str) -> None:
    cache = Cache(connect(cache_url), policy=Policy(lease_seconds=30))
    with pytest.raises(ZeroDivisionError):
        cache.get("k", lambda: 1 // 0)
    assert Cache(connect(cache_url)).get("k", lambda: 7) == 7
    assert cache.counters.load_errors == 1
