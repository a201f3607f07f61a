"""The configuration endpoint: the real relay over real Memcached servers, asked by real clients and by hand."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import itertools
import re
import resource
import shutil
import socket
import struct
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import elasticache_auto_discovery
import emcache
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymemcache.client.base import Client
from pymemcache.client.hash import HashClient
from tests.addresses import free_port, new_address

from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front, Node, Wanted
from cachekeep.network import discovery
from cachekeep.network import relay as relay_program
from cachekeep.network.fronts import programs

ADDRESS = new_address()
NODES = {number: new_address() for number in range(4)}
VERSION = "1.6.6"
"""Asked for; which build serves it is another matter."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def accepts(address: str, port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex((address, port)) == 0


def node(number: int, port: int) -> Node:
    return Node(
        name=f"mc.{number:04}",
        shard="1",
        zone="a",
        address=NODES[number],
        port=port,
        engine="memcached",
        version=VERSION,
        node_type="cache.t3.micro",
    )


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """Three Memcached servers; each holds its own name under ``me``."""
    program = shutil.which("memcached") or pytest.skip("needs memcached")
    port = free_port()
    made = [node(n, port) for n in (1, 2, 3)]
    with ExitStack() as stack:
        for n in made:
            process = stack.enter_context(
                subprocess.Popen([program, "-u", "nobody", "-l", n.address, "-p", str(port), "-m", "8", "-t", "1"])
            )
            stack.callback(process.kill)
            eventually(lambda n=n: accepts(n.address, port))
            Client((n.address, port)).set("me", n.name)
        yield made


class Relay:
    def __init__(self, directory: Path, nodes: list[Node], version: int = 1) -> None:
        self.directory = directory
        self.front = Front(name="cfg", kind="discovery", address=ADDRESS, port=nodes[0].port if nodes else 22122)
        self.where = (ADDRESS, self.front.port)
        wanted = Wanted(engine="memcached", version=VERSION, node_type="cache.t3.micro", port=self.front.port, shards=())
        cache = Cache(
            uid="u",
            name="mc",
            kind="cluster",
            region="x",
            created_at=dt.datetime.now(dt.UTC),
            wanted=wanted,
        )
        self.spec = discovery.spec(cache, self.front, nodes, version, told_version=VERSION)
        for name, file in self.spec.files.items():
            (directory / name).write_text(str(file.content).replace("{listen}", self.front.address))
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*programs(Catalogue)(self.spec.argv[0]), *(a.replace("{dir}", str(self.directory)) for a in self.spec.argv[1:])],
            env=self.spec.env,
        )
        eventually(lambda: accepts(*self.where))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def connect(self) -> socket.socket:
        s = socket.create_connection(self.where, 10)
        s.settimeout(60)
        return s

    def ask(self, *pieces: bytes, end: bytes = b"END\r\n") -> bytes:
        """Send the pieces one after another, each in a packet of its own; read until ``end``."""
        with self.connect() as s:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                s.sendall(piece)
                time.sleep(0.002)
            return read(s, end)


def read(s: socket.socket, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        piece = s.recv(65536)
        if not piece:
            raise EOFError(got)
        got += piece
    return got


@pytest.fixture
def relay(tmp_path: Path, nodes: list[Node]) -> Iterator[Relay]:
    made = Relay(tmp_path, nodes)
    yield made
    made.stop()


def framed(head: str, text: str) -> bytes:
    return f"{head} {len(text)}\r\n{text}\r\nEND\r\n".encode()


def binary(opcode: int, key: bytes = b"", *, extras: bytes = b"", value: bytes = b"", opaque: int = 0) -> bytes:
    """A request of the binary protocol."""
    body = extras + key + value
    return struct.pack(">BBHBBHIIQ", 0x80, opcode, len(key), len(extras), 0, 0, len(body), opaque, 0) + body


def frame(s: socket.socket) -> tuple[int, int, bytes]:
    """Opcode, opaque and body of the next reply, which is good."""

    def exactly(size: int) -> bytes:
        got = b""
        while len(got) < size:
            got += s.recv(size - len(got)) or pytest.fail(f"closed after {got!r}")
        return got

    magic, opcode, _, _, _, status, size, opaque, _ = struct.unpack(">BBHBBHIIQ", exactly(24))
    assert (magic, status) == (0x81, 0)
    return opcode, opaque, exactly(size)


# ---------------------------------------------------------------------------------------------------- bytes


def test_the_payload_of_the_guides_example() -> None:
    """Sizes and order as in the ElastiCache guide: the length counts from the version through the list's own line feed."""
    some = [node(2, 11211), node(1, 11211)]
    assert discovery.payload(12, some) == f"12\n{NODES[1]}|{NODES[1]}|11211 {NODES[2]}|{NODES[2]}|11211\n"
    assert discovery.payload(1, []) == "1\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (b"config get cluster\r\n",),
        (b"config get cluster\n",),
        (b"config get cluster \r\n",),
        (b"con", b"fig g", b"et cluster", b"\r", b"\n"),
        tuple(bytes([b]) for b in b"config get cluster\r\n"),
    ],
)
def test_config_get_cluster(relay: Relay, nodes: list[Node], pieces: tuple[bytes, ...]) -> None:
    assert relay.ask(*pieces) == framed("CONFIG cluster 0", discovery.payload(1, nodes))


def test_the_older_ways_to_ask(relay: Relay, nodes: list[Node]) -> None:
    text = discovery.payload(1, nodes)
    assert relay.ask(b"get AmazonElastiCache:cluster\r\n") == framed("VALUE AmazonElastiCache:cluster 0", text)
    assert relay.ask(b"gets AmazonElastiCache:cluster\n").startswith(
        f"VALUE AmazonElastiCache:cluster 0 {len(text)} 1\r\n".encode()
    )
    assert relay.ask(b"config get nothing\r\n") == b"END\r\n"


def test_version_and_stats_are_a_nodes_own(relay: Relay, nodes: list[Node]) -> None:
    own = Client((nodes[0].address, nodes[0].port))
    version = b"VERSION %s\r\n" % own.version()
    assert relay.ask(b"version\n", end=b"\r\n") == version != f"VERSION {VERSION}\r\n".encode()
    told, stats = relay.ask(b"stats\r\n"), own.stats()
    assert b"STAT pid %d\r\n" % stats[b"pid"] in told
    assert all(b"\r\nSTAT %s " % name in told for name in stats if name != b"pid")
    with relay.connect() as s:
        s.sendall(b"quit\r\nversion\r\n")
        assert s.makefile("rb").read() == b""


def test_binary(relay: Relay, nodes: list[Node]) -> None:
    """Between other frames and in their order, however it is cut; a no-op of the client's own stays one."""
    text = discovery.payload(1, nodes).encode()
    value = b"config get cluster\r\n" * 5000
    setq = binary(0x01, b"b", extras=bytes(8), value=value)
    sent = binary(0x0A) + binary(0x60, b"cluster", opaque=7) + setq + binary(0x60, b"cluster", opaque=8) + binary(0x0A, opaque=9)
    sent += binary(0x00, b"b") + binary(0x60, b"cluster", opaque=10)
    for size in (len(sent), 7, 1000):
        with relay.connect() as s:
            for start in range(0, len(sent), size):
                s.sendall(sent[start : start + size])
            replies = [frame(s) for _ in range(7)]
        assert [(r[0], r[1]) for r in replies] == [(0x0A, 0), (0x60, 7), (0x01, 0), (0x60, 8), (0x0A, 9), (0x00, 0), (0x60, 10)]
        assert [r[2] for r in replies if r[0] == 0x60] == [bytes(4) + text] * 3
        assert replies[5][2] == bytes(4) + value


def test_binary_without_any_node(tmp_path: Path) -> None:
    one = Relay(tmp_path, [])
    try:
        with one.connect() as s:
            s.sendall(binary(0x60, b"cluster", opaque=5))
            assert frame(s) == (0x60, 5, bytes(4) + b"1\n\n")
    finally:
        one.stop()


def test_pipelined_with_what_is_passed_on_answers_come_in_order(relay: Relay, nodes: list[Node]) -> None:
    config = framed("CONFIG cluster 0", discovery.payload(1, nodes))
    # The value looks like a command: it is data and must not be answered.
    value = b"config get cluster\r\nversion\r\n"
    version = b"VERSION %s\r\n" % Client((nodes[0].address, nodes[0].port)).version()
    sent = b"version\r\nset k 0 0 %d\r\n%s\r\nconfig get cluster\r\nget k\r\nget me\r\nconfig get cluster\r\n" % (len(value), value)
    want = version + b"STORED\r\n" + config + b"VALUE k 0 %d\r\n%s\r\nEND\r\n" % (len(value), value)
    want += b"VALUE me 0 7\r\nmc.0001\r\nEND\r\n" + config
    for cut in (len(sent), 1, 7):
        with relay.connect() as s:
            for start in range(0, len(sent), cut):
                s.sendall(sent[start : start + cut])
            got = b""
            while len(got) < len(want):
                got += s.recv(65536)
            assert got == want


@given(st.data())
def test_replies_are_counted_however_they_are_cut(data: st.DataObject) -> None:
    kinds = [
        b"STORED\r\n",
        b"END\r\n",
        b"VALUE k 0 10\r\nEND\r\nEND\r\n\r\nVALUE l 0 0 17\r\n\r\nEND\r\n",
        b"STAT a b\r\nSTAT c d\r\nEND\r\n",
        b"VA 5 t0\r\nHD\r\n \r\n",
        b"HD\r\n",
        b"SERVER_ERROR object too large for cache\r\n",
    ]
    sent = data.draw(st.lists(st.sampled_from(kinds), max_size=8))
    stream = b"".join(sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))) | {0, len(stream)})
    replies = relay_program.Replies()
    assert sum(replies.feed(stream[a:b]) for a, b in itertools.pairwise(cuts)) == len(sent)


def test_a_command_that_is_answered_by_silence_holds_up_for_a_moment_only(relay: Relay, nodes: list[Node]) -> None:
    config = framed("CONFIG cluster 0", discovery.payload(1, nodes))
    assert relay.ask(b"mg nothing v q\r\nconfig get cluster\r\n") == config
    assert relay.ask(b"set k 0 0 1 noreply\r\nx\r\nconfig get cluster\r\n") == config


def test_large_values_pass_both_ways(relay: Relay) -> None:
    value = bytes(range(256)) * 3900
    with relay.connect() as s:
        s.sendall(b"set big 0 0 %d\r\n%s\r\n" % (len(value), value))
        assert read(s, b"\r\n") == b"STORED\r\n"
        s.sendall(b"get big\r\n" * 5)
        want = b"VALUE big 0 %d\r\n%s\r\nEND\r\n" % (len(value), value) * 5
        got = bytearray()
        while len(got) < len(want):
            got += s.recv(65536)
        assert got == want


def test_a_dead_node_is_passed_over(tmp_path: Path, nodes: list[Node]) -> None:
    dead = node(0, nodes[0].port)
    one = Relay(tmp_path, [dead, *nodes])
    try:
        assert one.ask(b"get me\r\n") == b"VALUE me 0 7\r\nmc.0001\r\nEND\r\n"
    finally:
        one.stop()


# ---------------------------------------------------------------------------------------------------- orders


async def test_a_new_list_is_told_at_once(relay: Relay, nodes: list[Node]) -> None:
    assert await discovery.pointed(relay.directory, relay.front) == (("mc.0001", "mc.0002", "mc.0003"), 1)
    with relay.connect() as s:
        for version, some in ((2, nodes[:2]), (3, []), (4, nodes), (4, nodes)):
            await discovery.point(relay.directory, relay.front, some, version)
            s.sendall(b"config get cluster\r\n")
            assert read(s, b"END\r\n") == framed("CONFIG cluster 0", discovery.payload(version, some))
            assert await discovery.pointed(relay.directory, relay.front) == (tuple(n.name for n in some), version)
    relay.stop()
    with pytest.raises(OrderFailed, match="does not answer"):
        await discovery.point(relay.directory, relay.front, nodes[:1], 5)
    relay.start()
    assert await discovery.pointed(relay.directory, relay.front) == (("mc.0001",), 5)


# ---------------------------------------------------------------------------------------------------- clients


def test_elasticache_auto_discovery(relay: Relay, nodes: list[Node]) -> None:
    found = elasticache_auto_discovery.discover(f"{ADDRESS}:{relay.front.port}", 5)
    assert found == [[n.address.encode(), n.address.encode(), str(n.port).encode()] for n in nodes]


def test_django_elasticache(relay: Relay, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code, unmodified; only the name that Django 4 took away (an alias of ``smart_str``) is there again."""
    from django.utils import encoding

    monkeypatch.setattr(encoding, "smart_text", encoding.smart_str, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = importlib.import_module("django_elasticache.cluster_utils")
        assert utils.get_cluster_info(*relay.where) == {"version": 1, "nodes": [f"{n.address}:{n.port}" for n in nodes]}


def test_pymemcache(relay: Relay, nodes: list[Node]) -> None:
    """Released versions find nodes by hand; the pattern is the one of the project's ElastiCache client."""
    answer = Client(relay.where).raw_command(b"config get cluster", end_tokens=b"\n\r\nEND\r\n")
    found = re.findall(r"([\w.-]+)\|([\d.]*)\|(\d+)", answer.decode())
    client = HashClient([(ip, int(port)) for _, ip, port in found])
    for n in range(30):
        assert client.set(f"key-{n}", str(n))
    held = [sum(Client((n.address, n.port)).get(f"key-{k}") is not None for k in range(30)) for n in nodes]
    assert sum(held) == 30
    assert all(held)


async def test_emcache(relay: Relay, nodes: list[Node]) -> None:
    client = await emcache.create_client(
        [emcache.MemcachedHostAddress(*relay.where)], autodiscovery=True, autodiscovery_poll_interval=0.05, autodiscovery_timeout=5
    )
    try:

        def hosts() -> set[str]:
            return {h.address for h in client.cluster_managment().nodes()}

        assert hosts() == {n.address for n in nodes}
        await client.set(b"key", b"value")
        assert (await client.get(b"key")).value == b"value"
        await discovery.point(relay.directory, relay.front, nodes[:2], 2)
        async with asyncio.timeout(60):
            while hosts() != {n.address for n in nodes[:2]}:
                await asyncio.sleep(0.01)
    finally:
        await client.close()


# ---------------------------------------------------------------------------------------------------- bounds


def test_a_line_without_end_is_cut_off(relay: Relay) -> None:
    with relay.connect() as s:
        s.sendall(b"x" * 70000)
        assert s.makefile("rb").read().startswith(b"CLIENT_ERROR")


def test_many_silent_clients_do_not_shut_out_a_live_one(relay: Relay, nodes: list[Node]) -> None:
    config = framed("CONFIG cluster 0", discovery.payload(1, nodes))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("needs a limit of 2,000 open files")
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(relay.connect()).sendall(b"con")
        assert relay.ask(b"config get cluster\r\n") == config


def test_a_client_that_never_reads_stops_nobody(relay: Relay, nodes: list[Node]) -> None:
    config = framed("CONFIG cluster 0", discovery.payload(1, nodes))
    with relay.connect() as s:
        s.setblocking(False)
        try:
            for _ in range(2000):
                s.send(b"config get cluster\r\n" * 500)
        except BlockingIOError:
            pass
        assert relay.ask(b"config get cluster\r\n") == config
        status = Path(f"/proc/{relay.process.pid}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 40_000


def test_no_node_at_all(tmp_path: Path) -> None:
    one = Relay(tmp_path, [])
    try:
        assert one.ask(b"config get cluster\r\n") == framed("CONFIG cluster 0", "1\n\n")
        assert one.ask(b"get k\r\n", end=b"\r\n") == b"SERVER_ERROR no node can be reached\r\n"
    finally:
        one.stop()
