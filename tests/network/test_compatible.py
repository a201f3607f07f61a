"""The configuration endpoint of a compatible group: what is replaced on the way to the engine, and unmodified cluster clients."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.addresses import new_address

from cachekeep.network import compatible_relay as relay

NODE = "0123456789abcdef0123456789abcdef01234567"
PORT = 6379
PRESENTED = relay.Presented("127.0.0.9", PORT, NODE)


def command(*words: bytes | str) -> bytes:
    said = [w if isinstance(w, bytes) else w.encode() for w in words]
    return b"*%d\r\n" % len(said) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in said)


def through(data: bytes) -> bytes:
    return relay.Translator(PRESENTED).feed(data)


# ------------------------------------------------------------------ what is replaced


@pytest.mark.parametrize(
    ("said", "script"),
    [
        (["READONLY"], relay.STATUS_OK),
        (["readwrite"], relay.STATUS_OK),
        (["ASKING"], relay.STATUS_OK),
        (["CLUSTER", "SLOTS"], relay.TABLE),
        (["cluster", "shards"], relay.SHARDS),
        (["CLUSTER", "NODES"], relay.TEXT),
        (["CLUSTER", "INFO"], relay.TEXT),
        (["CLUSTER", "MYID"], relay.STRING),
        (["CLUSTER", "MYSHARDID"], relay.STRING),
        (["CLUSTER", "KEYSLOT", "foo"], relay.NUMBER),
        (["CLUSTER", "REPLICAS", NODE], relay.EMPTY),
        (["CLUSTER", "REPLICAS", "f" * 40], relay.ERROR),
        (["CLUSTER", "COUNT-FAILURE-REPORTS", NODE], relay.NUMBER),
        (["CLUSTER", "COUNTKEYSINSLOT", "1"], relay.ERROR),
        (["CLUSTER", "GETKEYSINSLOT", "1", "10"], relay.ERROR),
        (["SELECT", "1"], relay.ERROR),
    ],
    ids=str,
)
def test_what_a_cluster_client_asks_is_answered_by_a_script(said: list[str], script: str) -> None:
    sent = through(command(*said))
    assert command("EVAL_RO", script, "0")[4:] in sent
    assert through(" ".join(said).encode() + b"\r\n") == sent  # as people type it


@pytest.mark.parametrize(
    "said",
    [
        ["GET", "CLUSTER"],
        ["SET", "READONLY", "x" * 100_000],
        ["CLUSTER"],
        ["CLUSTER", "SLOTS", "more"],
        ["CLUSTER", "FAILOVER"],
        ["CLUSTER", "MEET", "127.0.0.1", "1"],
        ["READONLY", "more"],
        ["SELECT", "0"],
        ["HELLO", "3"],
        ["EVAL", "return 1", "0"],
        [b"\x00\r\n*1\r\n$8\r\nREADONLY\r\n"],
        ["SET", "k", b"*1\r\n$8\r\nREADONLY\r\n"],
        ["SET", "", ""],
    ],
    ids=lambda said: str(said)[:40],
)
def test_everything_else_passes_byte_for_byte(said: list[bytes | str]) -> None:
    assert through(command(*said)) == command(*said)


@pytest.mark.parametrize(
    "said", [b"*x\r\n", b"*2\r\n+a\r\n$8\r\nREADONLY\r\n", b"*1\r\n$-1\r\n", b"*" * 100, b"\x00" * 70_000], ids=str
)
def test_what_cannot_be_read_is_left_to_the_engine(said: bytes) -> None:
    assert through(said + b"READONLY\r\n") == said + b"READONLY\r\n"


@pytest.mark.parametrize("said", [b"\r\n", b"*0\r\n"], ids=str)
def test_nothing_said_is_nothing(said: bytes) -> None:
    assert through(said + command("GET", "a")) == said + command("GET", "a")


def test_shapes_are_those_of_the_protocol_that_was_agreed_on() -> None:
    translator = relay.Translator(PRESENTED)
    assert relay.SHARDS_RESP3.encode() in translator.feed(command("HELLO", "3") + command("CLUSTER", "SHARDS"))
    assert relay.SHARDS.encode() in translator.feed(command("RESET") + command("CLUSTER", "SHARDS"))


def test_a_large_value_is_not_kept_until_it_is_whole() -> None:
    translator = relay.Translator(PRESENTED)
    whole = command("SET", "k", "v" * 1_000_000)
    assert translator.feed(whole[:500_000]) == whole[:500_000]
    assert translator.kept == b""


@pytest.mark.parametrize(("key", "slot"), [(b"foo", 12182), (b"{user1000}.following", 3443), (b"foo{}{bar}", 8363), (b"", 0)])
def test_slots_of_keys_are_those_of_the_cluster_specification(key: bytes, slot: int) -> None:
    assert relay.slot_of(key) == slot


SOME = st.sampled_from(
    [
        command("READONLY"),
        command("CLUSTER", "SLOTS"),
        b"cluster nodes\r\n",
        b"PING\n",
        command("GET", "READONLY"),
        command("SET", "k", b"*1\r\n$6\r\nASKING\r\n"),
        command("HELLO", "3"),
        command("CLUSTER", "SHARDS"),
        command("x" * 20, ""),
        b"\r\n",
    ]
)


@given(st.lists(SOME, max_size=12), st.lists(st.integers(0, 400), max_size=12))
def test_it_does_not_matter_how_commands_are_cut(commands: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(commands)
    translator = relay.Translator(PRESENTED)
    at, sent = 0, b""
    for cut in [*sorted(c for c in cuts if c < len(whole)), len(whole)]:
        sent += translator.feed(whole[at:cut])
        at = cut
    assert sent == through(whole)
    assert translator.kept == b""


# ------------------------------------------------------------------ real engines and clients


def eventually(met: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not met():
        assert time.monotonic() < until
        time.sleep(0.005)


def accepts(address: str) -> bool:
    with socket.socket() as s:
        return s.connect_ex((address, PORT)) == 0


class Engine:
    """A plain server at an address, as the primary endpoint is one."""

    def __init__(self, program: str, address: str, directory: Path, *more: str) -> None:
        directory.mkdir(parents=True)
        argv = [
            program,
            "--bind",
            address,
            "--port",
            str(PORT),
            "--save",
            "",
            "--protected-mode",
            "no",
            "--dir",
            str(directory),
            *more,
        ]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        eventually(lambda: accepts(address))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Place:
    """A front, and the engines that come and go behind it."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program, self.directory = program, directory
        self.address, self.primary = new_address(), new_address()
        self.engines: list[Engine] = []
        (directory / "listen").write_text(f"{self.address} {PORT} {self.primary} {NODE}\n")
        self.relay = subprocess.Popen([sys.executable, "-I", "-S", relay.__file__, str(directory)])
        eventually(lambda: accepts(self.address))

    def start(self, *more: str) -> Engine:
        engine = Engine(self.program, self.primary, self.directory / f"engine-{len(self.engines)}", *more)
        self.engines.append(engine)
        return engine

    def close(self) -> None:
        self.relay.kill()
        self.relay.wait()
        for engine in self.engines:
            engine.kill()

    def raw(self, said: bytes) -> bytes:
        """Say it, say no more, and hear all answers."""
        with socket.create_connection((self.address, PORT), timeout=60) as line:
            line.sendall(said)
            line.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.fixture(params=["valkey-server", "redis-server"])
def idle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A front with nothing behind it yet."""
    program = shutil.which(request.param) or pytest.skip(f"needs {request.param}")
    with contextlib.closing(Place(program, tmp_path)) as place:
        yield place


@pytest.fixture
def place(idle: Place) -> Place:
    idle.start()
    return idle


def test_answers_come_in_order_and_in_shape_also_within_a_transaction(place: Place) -> None:
    said = [command("SET", "a", "1"), command("READONLY"), command("MULTI"), command("CLUSTER", "MYID"), command("GET", "a")]
    answered = place.raw(b"".join([*said, command("EXEC"), command("CLUSTER", "KEYSLOT", "foo"), command("SELECT", "1")]))
    tail = b"*2\r\n$40\r\n" + NODE.encode() + b"\r\n$1\r\n1\r\n:12182\r\n-ERR SELECT is not allowed in cluster mode\r\n"
    assert answered == b"+OK\r\n+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n" + tail


def test_a_table_names_the_endpoint_itself_in_both_protocols(place: Place) -> None:
    address = place.address.encode()
    row = b"*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$%d\r\n%s\r\n:6379\r\n$40\r\n%s\r\n" % (len(address), address, NODE.encode())
    assert place.raw(command("CLUSTER", "SLOTS")) == row + b"*0\r\n"
    assert place.raw(command("HELLO", "3") + command("CLUSTER", "SLOTS")).endswith(row + b"%0\r\n")


def test_whoever_may_not_ask_is_refused_by_the_engine(idle: Place) -> None:
    idle.start("--requirepass", "secret")
    assert idle.raw(command("CLUSTER", "SLOTS")).startswith(b"-NOAUTH")
    assert idle.raw(command("AUTH", "secret") + command("READONLY")) == b"+OK\r\n+OK\r\n"
    client = valkey.ValkeyCluster(host=idle.address, port=PORT, password="secret")
    assert client.set("a", "b")
    client.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", [valkey.ValkeyCluster, redis.RedisCluster])
def test_python_cluster_clients(place: Place, kind: type[valkey.ValkeyCluster], protocol: int) -> None:
    client = kind(host=place.address, port=PORT, protocol=protocol, decode_responses=True, read_from_replicas=True)
    for n in range(100):
        client.set(f"key:{n}", n)
    assert [client.get(f"key:{n}") for n in range(100)] == [str(n) for n in range(100)]
    pipeline = client.pipeline()
    pipeline.incr("n").incr("n")
    assert pipeline.execute() == [1, 2]
    assert client.cluster_info()["cluster_state"] == "ok"
    assert [n["node_id"] for n in client.cluster_nodes().values()] == [NODE]
    assert client.cluster_keyslot("foo") == 12182
    (shard,) = client.cluster_shards()
    assert shard.get("slots", shard.get(b"slots")) in ([(0, 16383)], [0, 16383])
    client.close()


@pytest.mark.anyio
async def test_asyncio_cluster_clients(place: Place) -> None:
    for client in (
        valkey.asyncio.ValkeyCluster(host=place.address, port=PORT),
        redis.asyncio.RedisCluster(host=place.address, port=PORT),
    ):
        await client.set("a", "b")
        assert await client.get("a") == b"b"
        await client.aclose()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_glide_cluster_client(place: Place) -> None:
    from glide import GlideClusterClient, GlideClusterClientConfiguration, NodeAddress

    config = GlideClusterClientConfiguration([NodeAddress(place.address, PORT)])
    client = await GlideClusterClient.create(config)
    assert await client.mset({"k1": "1", "k2": "2", "k3": "3"}) == "OK"
    assert await client.mget(["k1", "k2", "k3"]) == [b"1", b"2", b"3"]
    await client.close()


def test_command_line_clients(place: Place) -> None:
    client = ["-h", place.address, "-p", str(PORT)]
    cli = shutil.which("valkey-cli") or pytest.skip("needs valkey-cli")
    assert subprocess.run([cli, "-c", *client, "set", "foo", "bar"], capture_output=True, text=True, check=True).stdout == "OK\n"
    benchmark = shutil.which("valkey-benchmark") or pytest.skip("needs valkey-benchmark")
    argv = [benchmark, "--cluster", *client, "-n", "2000", "-t", "set,get,mset", "-P", "8", "-q"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert "rror" not in done.stdout + done.stderr


def test_pushes_and_large_values_pass(place: Place) -> None:
    listener = valkey.Valkey(host=place.address, port=PORT, protocol=3).pubsub()
    listener.subscribe("news")
    assert listener.get_message(timeout=60)["type"] == "subscribe"
    client = valkey.Valkey(host=place.address, port=PORT)
    large = bytes(range(256)) * 20_000
    client.set("large", large)
    assert client.get("large") == large
    client.publish("news", large)
    heard = listener.get_message(timeout=60)
    assert heard["data"] == large
    listener.close()
    client.close()


def test_a_slow_reader_holds_up_nobody_and_costs_no_memory(place: Place) -> None:
    client = valkey.Valkey(host=place.address, port=PORT)
    client.set("large", b"x" * 1_000_000)
    with socket.create_connection((place.address, PORT), timeout=60) as slow:
        slow.sendall(command("GET", "large") * 100)
        slow.recv(1)
        # What it does not read stays with the engine, whose limits for it are the user's.
        held = [0] * 30

        def stays() -> bool:
            held.append(max(int(c["omem"]) for c in client.client_list()))
            return held[-1] > 50_000_000 and set(held[-30:]) == {held[-1]}

        eventually(stays)
    eventually(lambda: len(client.client_list()) == 1)  # and the engine forgets it when it goes
    client.close()


def test_a_stopped_engine_holds_up_its_clients_and_costs_no_memory(place: Place) -> None:
    with socket.create_connection((place.address, PORT), timeout=60) as line:
        line.sendall(command("PING"))
        assert line.recv(100) == b"+PONG\r\n"
        place.engines[0].process.send_signal(signal.SIGSTOP)
        line.setblocking(False)
        piece, sent = command("SET", "k", b"x" * 65536) * 4, 0
        while sent < 200_000_000 and select.select([], [line], [], 1.0)[1]:
            sent += line.send(piece)
        assert sent < 200_000_000
        place.engines[0].process.send_signal(signal.SIGCONT)


def test_who_connects_during_a_failover_waits_for_it(idle: Place) -> None:
    with socket.create_connection((idle.address, PORT), timeout=60) as line:
        line.sendall(command("SET", "a", "1"))
        idle.start()
        assert line.recv(100) == b"+OK\r\n"
        idle.engines[0].kill()
        assert line.recv(100) == b""  # its connection ends with the engine's


def test_a_cluster_client_finds_the_next_primary(place: Place) -> None:
    client = valkey.ValkeyCluster(host=place.address, port=PORT)
    client.set("a", "1")
    place.engines[0].kill()
    place.start()

    def written() -> bool:
        with contextlib.suppress(valkey.exceptions.ConnectionError):
            return bool(client.set("a", "2"))
        return False

    eventually(written)
    client.close()


def test_more_clients_than_descriptors_are_turned_away_and_the_others_served(idle: Place) -> None:
    idle.start()
    idle.relay.kill()
    idle.relay.wait()
    idle.relay = subprocess.Popen(
        [sys.executable, "-I", "-S", relay.__file__, str(idle.directory)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120)),
    )
    eventually(lambda: accepts(idle.address))
    with contextlib.ExitStack() as stack:

        def served() -> bool:
            line = stack.enter_context(socket.create_connection((idle.address, PORT), timeout=60))
            with contextlib.suppress(ConnectionError):
                line.sendall(command("PING"))
                return line.recv(100) == b"+PONG\r\n"
            return False

        assert [served() for _ in range(10)] == [True] * 10
        assert not any(served() for _ in range(5))
        stack.close()
        eventually(served)


def test_without_a_primary_a_client_is_not_kept_for_ever(idle: Place) -> None:
    with socket.create_connection((idle.address, PORT), timeout=30) as line:
        line.sendall(command("PING"))
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""


@pytest.mark.anyio
async def test_many_clients_at_once(place: Place) -> None:
    async def one(n: int) -> bool:
        client = valkey.asyncio.Valkey(host=place.address, port=PORT)
        await client.set(f"key:{n}", n)
        found = await client.get(f"key:{n}")
        await client.aclose()
        return found == str(n).encode()

    assert all(await asyncio.gather(*(one(n) for n in range(300))))
