"""Lock, rate limiter, leaderboard, idempotency keys."""

from __future__ import annotations

import asyncio
import decimal
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import valkey

from cachekeep_patterns import CacheDown, connect, connect_async
from cachekeep_patterns.errors import AnswerNotKept, DuplicateRequest, KeyReused, LockBusy, LockLost
from cachekeep_patterns.primitives import (
    AsyncIdempotency,
    AsyncLeaderboard,
    AsyncLock,
    AsyncRateLimiter,
    AsyncSemaphore,
    Idempotency,
    Leaderboard,
    Lock,
    RateLimiter,
    Semaphore,
    Standing,
)
from patterns_rig.servers import Server, cluster, wait_for
from patterns_rig.stalls import unless_stalled


def url(server: Server, scheme: str = "valkey") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


# --------------------------------------------------------------------------- lock


def test_one_holder_at_a_time_and_fences_grow(server: Server) -> None:
    client = connect(url(server))
    inside, most = 0, 0
    fences: list[int] = []

    def work(_: int) -> None:
        nonlocal inside, most
        with Lock(client, "l", lease_seconds=5) as fence:
            inside += 1
            most = max(most, inside)
            fences.append(fence)
            time.sleep(0.001)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most == 1
    assert fences == sorted(set(fences))
    assert len(fences) == 40


def test_a_lock_outlives_its_lease_while_its_holder_lives(server: Server) -> None:
    client = connect(url(server))
    lock = Lock(client, "l")

    def attempt(lease_seconds: float) -> None:
        lock.lease_seconds = lease_seconds
        with lock:
            time.sleep(1.5 * lease_seconds)
            assert lock.held
            with pytest.raises(LockBusy):
                Lock(client, "l").acquire(0)

    unless_stalled(connect(url(server)), 1, attempt)
    assert not lock.held
    with pytest.raises(LockLost):
        lock.check()


HOLDER = """
import sys, time
from cachekeep_patterns import connect
from cachekeep_patterns.primitives import Lock
lock = Lock(connect(sys.argv[1]), "l", lease_seconds=0.5)
print(lock.acquire(), flush=True)
sys.stdin.readline()
print(lock.held, flush=True)
"""


def test_a_frozen_holder_knows_that_it_lost_and_its_fence_is_older(server: Server) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, url(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    first = int(holder.stdout.readline())
    os.kill(holder.pid, signal.SIGSTOP)
    with Lock(connect(url(server)), "l", wait_seconds=30) as fence:
        assert fence > first
        os.kill(holder.pid, signal.SIGCONT)
        out, _ = holder.communicate("\n", timeout=30)
        assert out.strip() == "False"
        assert valkey.Valkey(port=server.port).exists("{l}:lock")  # it did not free what is ours now


async def test_async_lock(server: Server) -> None:
    client = connect_async(url(server))
    inside = 0

    async def work() -> int:
        nonlocal inside
        async with AsyncLock(client, "l", lease_seconds=5) as fence:
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.001)
            inside -= 1
            return fence

    fences = await asyncio.gather(*(work() for _ in range(20)))
    assert len(set(fences)) == 20
    await client.aclose()


@pytest.mark.parametrize("how", ["in the constructor", "in acquire"])
def test_a_lock_that_must_not_wait_does_not(server: Server, how: str) -> None:
    client = connect(url(server))
    with Lock(client, "l"):
        other = Lock(client, "l", wait_seconds=0 if how == "in the constructor" else None)
        began = time.monotonic()
        with pytest.raises(LockBusy):
            other.acquire() if how == "in the constructor" else other.acquire(0)
        assert time.monotonic() - began < 5


def test_a_lock_leaves_nothing_for_ever_and_its_fence_survives_that(server: Server) -> None:
    client, admin = connect(url(server)), valkey.Valkey(port=server.port)
    with Lock(client, "l") as first:
        assert all(admin.pttl(key) > 0 for key in admin.keys("*"))
    assert all(admin.pttl(key) > 0 for key in admin.keys("*"))
    admin.flushall()  # evicted, or a node that did not get them
    with Lock(client, "l") as second:
        assert second > first
    admin.set("{l}:fence", second + 10**15)
    with Lock(client, "l") as third:
        assert third == second + 10**15 + 1


def test_names_with_braces_are_names(server: Server) -> None:
    client = connect(url(server))
    with Lock(client, "{a}b}"), Lock(client, "{a}c"), Lock(client, "}"):
        pass
    with pytest.raises(ValueError, match="name"):
        Lock(client, "")


# --------------------------------------------------------------------------- semaphore


def test_no_more_holders_than_places(server: Server) -> None:
    client = connect(url(server))
    counting, inside, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with Semaphore(client, "s", 3, lease_seconds=5):
            with counting:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with counting:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert 1 < most <= 3
    assert valkey.Valkey(port=server.port).dbsize() == 0


def test_a_dead_holders_place_comes_free_and_a_living_one_keeps_its(server: Server) -> None:
    client = connect(url(server))
    dead = Semaphore(client, "s", 2, lease_seconds=1)
    dead.acquire()
    assert dead._stop is not None
    dead._stop()  # nobody renews it
    with Semaphore(client, "s", 2, lease_seconds=30):
        with pytest.raises(LockBusy):
            Semaphore(client, "s", 2, wait_seconds=0).acquire()
        Semaphore(client, "s", 2, wait_seconds=30).acquire()
    assert not dead.held
    with pytest.raises(LockLost):
        dead.check()


async def test_async_semaphore(server: Server) -> None:
    client = connect_async(url(server))
    async with AsyncSemaphore(client, "s", 1):
        with pytest.raises(LockBusy):
            await AsyncSemaphore(client, "s", 1, wait_seconds=0).acquire()
    await client.aclose()


# --------------------------------------------------------------------------- rate limiter


def test_all_at_once_and_then_none_for_a_window(server: Server) -> None:
    limiter = RateLimiter(connect(url(server)), "api", limit=10, per_seconds=1000)
    decisions = [limiter.take("ada") for _ in range(12)]
    assert [bool(one) for one in decisions] == [True] * 10 + [False] * 2
    assert [one.remaining for one in decisions[:10]] == list(range(9, -1, -1))
    assert 900 < decisions[10].retry_after_seconds <= 1001
    assert limiter.take("grace")
    with pytest.raises(ValueError):
        limiter.take("ada", 11)
    with pytest.raises(ValueError, match="burst"):
        RateLimiter(connect(url(server)), "api", limit=10, per_seconds=1, burst=11)


def test_a_burst_and_then_an_even_flow(server: Server) -> None:
    limiter = RateLimiter(connect(url(server)), "api", limit=10, per_seconds=1000, burst=4)
    decisions = [limiter.take("ada") for _ in range(5)]
    assert [bool(one) for one in decisions] == [True] * 4 + [False]
    assert [one.remaining for one in decisions[:4]] == [3, 2, 1, 0]
    assert 90 < decisions[4].retry_after_seconds <= 100


@pytest.mark.parametrize("burst", [None, 1, 5, 20])
def test_no_window_holds_more_than_was_promised(server: Server, burst: int | None) -> None:
    limit, per_seconds = 20, 0.5
    limiter = RateLimiter(connect(url(server)), "api", limit=limit, per_seconds=per_seconds, burst=burst)
    admitted: list[tuple[float, float]] = []  # before it was asked, and after
    until = time.monotonic() + 4 * per_seconds
    while (asked := time.monotonic()) < until:
        if limiter.take("ada"):
            admitted.append((asked, time.monotonic()))
    for (first, _), (_, last) in zip(admitted, admitted[limit:], strict=False):
        assert last - first >= per_seconds
    assert len(admitted) > limit  # places do come free again


def test_looking_takes_nothing_and_a_reset_gives_all_back(server: Server) -> None:
    limiter = RateLimiter(connect(url(server)), "api", limit=2, per_seconds=1000)
    assert [limiter.peek("ada").remaining for _ in range(5)] == [2] * 5
    limiter.take("ada", 2)
    refused = limiter.peek("ada")
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert 900 < refused.retry_after_seconds <= 1001
    limiter.reset("ada")
    assert limiter.take("ada")


def test_names_do_not_run_into_each_other(server: Server) -> None:
    client = connect(url(server))
    assert RateLimiter(client, "a", limit=1, per_seconds=1000).take("b:c")
    assert RateLimiter(client, "a:b", limit=1, per_seconds=1000).take("c")


def test_what_retry_after_promises_holds(server: Server) -> None:
    for options in ({"burst": 1, "limit": 5}, {"limit": 1}):
        limiter = RateLimiter(connect(url(server)), f"api {options}", per_seconds=0.5, **options)
        assert limiter.take("ada")
        while refused := limiter.take("ada"):  # where the machine stalls for longer than the limit
            pass
        time.sleep(refused.retry_after_seconds + 0.001)
        assert limiter.take("ada")


def test_callers_together_get_no_more_than_the_limit(server: Server) -> None:
    limiters = [RateLimiter(connect(url(server)), "api", limit=50, per_seconds=10_000) for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        assert sum(map(bool, pool.map(lambda i: limiters[i % 4].take("ada"), range(200)))) == 50


def test_the_limit_cannot_be_checked(frail: Server) -> None:
    client = connect(url(frail), deadline_seconds=0)
    frail.kill()
    with pytest.raises(CacheDown):
        RateLimiter(client, "api", limit=1, per_seconds=1).take("ada")
    assert RateLimiter(client, "api", limit=1, per_seconds=1, when_down=True).take("ada")
    assert not RateLimiter(client, "api", limit=1, per_seconds=1, when_down=False).take("ada")


async def test_async_rate_limiter(server: Server) -> None:
    client = connect_async(url(server))
    limiter = AsyncRateLimiter(client, "api", limit=3, per_seconds=1000)
    assert sum(map(bool, await asyncio.gather(*(limiter.take("ada") for _ in range(10))))) == 3
    await client.aclose()


# --------------------------------------------------------------------------- leaderboard


def test_leaderboard(server: Server) -> None:
    board = Leaderboard(connect(url(server)), "game")
    for member, score in (("ada", 10), ("grace", 30), ("emmy", 20), ("hedy", 20), ("mary", 5)):
        board.record(member, score)
    board.record("ada", 1)  # not better
    assert board.standing("ada") == Standing("ada", 10, 4)
    assert board.standing("nobody") is None
    assert [(one.member, one.rank) for one in board.top(3)] == [("grace", 1), ("hedy", 2), ("emmy", 2)]
    assert [one.member for one in board.top(2, skip=3)] == ["ada", "mary"]
    assert [one.member for one in board.around("emmy", 1)] == ["hedy", "emmy", "ada"]
    assert [one.member for one in board.around("grace", 1)] == ["grace", "hedy"]
    assert board.around("nobody") == []
    assert board.add("mary", 25.5) == 30.5
    assert board.top(1) == [Standing("mary", 30.5, 1)]
    assert board.remove("mary")
    assert not board.remove("mary")


async def test_async_leaderboard(server: Server) -> None:
    client = connect_async(url(server))
    board = AsyncLeaderboard(client, "game")
    await board.add("ada", 2)
    await board.record("grace", 3)
    assert [one.member for one in await board.top()] == ["grace", "ada"]
    assert await board.standing("ada") == Standing("ada", 2, 2)
    assert len(await board.around("ada")) == 2
    await client.aclose()


# --------------------------------------------------------------------------- idempotency


@pytest.mark.parametrize("scheme", ["valkey", "memcached"])
def test_a_request_sent_many_times_is_carried_out_once(scheme: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("server" if scheme == "valkey" else "memory")
    requests = [Idempotency(connect(url(server, scheme))) for _ in range(4)]
    done = []

    def pay() -> dict[str, int]:
        time.sleep(0.05)
        done.append(1)
        return {"receipt": 7}

    with ThreadPoolExecutor(16) as pool:
        got = list(
            pool.map(lambda i: requests[i % 4].run("order-1", pay, scope="t", arguments={"amount": 5}, wait_seconds=30), range(16))
        )
    assert got == [{"receipt": 7}] * 16
    assert done == [1]
    with pytest.raises(KeyReused):
        requests[0].run("order-1", pay, scope="t", arguments={"amount": 6})


def test_a_running_request_and_a_failed_one(server: Server) -> None:
    requests = Idempotency(connect(url(server)))
    gate, began = threading.Event(), threading.Event()

    def slow() -> int:
        began.set()
        gate.wait(30)
        return 1

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: requests.run("k", slow, scope="t"))
        assert began.wait(30)
        with pytest.raises(DuplicateRequest):
            requests.run("k", slow, scope="t")
        gate.set()
        assert first.result() == 1
    assert requests.run("k", slow, scope="t") == 1
    with pytest.raises(ZeroDivisionError):
        requests.run("f", lambda: 1 // 0, scope="t")
    assert requests.run("f", lambda: 2, scope="t") == 2


DIES = """
import os, sys
from cachekeep_patterns import connect
from cachekeep_patterns.primitives import Idempotency
Idempotency(connect(sys.argv[1]), lease_seconds=0.5, at_most_once=sys.argv[2] == "once").run(
    "k", lambda: os._exit(9), scope="t"
)
"""


def test_the_process_dies_half_way(server: Server) -> None:
    requests = Idempotency(connect(url(server)), lease_seconds=0.5)
    subprocess.run([sys.executable, "-c", DIES, url(server), "again"], check=False)
    assert requests.run("k", lambda: 1, scope="t", wait_seconds=30) == 1  # after the lease
    valkey.Valkey(port=server.port).flushall()
    subprocess.run([sys.executable, "-c", DIES, url(server), "once"], check=False)
    with pytest.raises(DuplicateRequest):
        requests.run("k", lambda: 1, scope="t", wait_seconds=1)


def test_nothing_is_done_if_it_cannot_be_told(frail: Server) -> None:
    requests = Idempotency(connect(url(frail), deadline_seconds=0))
    frail.kill()
    with pytest.raises(CacheDown):
        requests.run("k", lambda: pytest.fail("it was carried out"), scope="t")


def test_what_cannot_be_encoded_is_done_once_all_the_same(server: Server) -> None:
    requests = Idempotency(connect(url(server)))
    done: list[object] = []

    def work() -> object:
        done.append(object())
        return done[-1]

    assert requests.run("k", work, scope="t") is done[0]
    with pytest.raises(AnswerNotKept, match="not carried out again"):
        requests.run("k", work, scope="t")
    assert len(done) == 1


def test_the_first_answer_is_of_the_type_of_the_others(server: Server) -> None:
    requests = Idempotency(connect(url(server)))
    first, second = (requests.run("k", lambda: (1, decimal.Decimal("1.5")), scope="t") for _ in range(2))
    assert first == second
    assert type(first) is type(second)


def test_a_key_counts_within_its_scope(server: Server) -> None:
    requests = Idempotency(connect(url(server)))
    asked = [("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("b", "b:c")]
    assert [requests.run(key, lambda n=n: n, scope=scope) for n, (scope, key) in enumerate(asked)] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="scope"):
        requests.run("k", lambda: 1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="scope"):
        requests.run("k", lambda: 1, scope="")


def test_arguments_of_another_type_are_other_arguments(server: Server) -> None:
    requests = Idempotency(connect(url(server)))
    requests.run("k", lambda: 1, scope="t", arguments={"amount": 1})
    for other in ({"amount": "1"}, {"amount": 1.0}, {"amount": True}, [("amount", 1)]):
        with pytest.raises(KeyReused):
            requests.run("k", lambda: 2, scope="t", arguments=other)


async def test_async_idempotency(server: Server) -> None:
    client = connect_async(url(server))
    requests = AsyncIdempotency(client)
    done = []

    async def pay() -> int:
        await asyncio.sleep(0.02)
        done.append(1)
        return 7

    assert await asyncio.gather(*(requests.run("k", pay, scope="t", wait_seconds=30) for _ in range(10))) == [7] * 10
    assert done == [1]
    await client.aclose()


def test_all_of_it_works_in_a_cluster() -> None:
    with cluster(3) as servers:
        client = connect(url(servers[0]), cluster=True)
        for i in range(6):
            with Lock(client, f"l{i}") as fence:
                assert fence
            assert RateLimiter(client, f"r{i}", limit=1, per_seconds=10).take("ada")
            assert Idempotency(client).run(f"k{i}", lambda: 1, scope="t") == 1
        board = Leaderboard(client, "game")
        board.record("ada", 1)
        wait_for(lambda: board.standing("ada") == Standing("ada", 1, 1), "the standing")
