"""The readers' balancer: real HAProxy over real Redis servers."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from tests.addresses import free_port, new_address

from cachekeep.engines.limits import BALANCED_BYTES, BALANCER_BYTES, FRONT_CONNECTIONS
from cachekeep.errors import OrderFailed
from cachekeep.model import Cache, Front, Node, Wanted
from cachekeep.network import balancer
from cachekeep.network.fronts import find_haproxy

ADDRESS = new_address()
NODES = {f"r-00{i}": new_address() for i in (1, 2, 3)}


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


@pytest.fixture(scope="module")
def servers() -> Iterator[int]:
    """Three Redis servers, each knowing its own name; yields their port."""
    program = shutil.which("redis-server") or pytest.skip("needs redis-server")
    port = free_port()
    with ExitStack() as stack:
        for name, address in NODES.items():
            argv = [program, "--bind", address, "--port", str(port), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd="/"))
            stack.callback(process.kill)
            eventually(lambda address=address: accepts(address, port))
            with redis.Redis(address, port) as client:
                client.set("name", name)
        yield port


class Balancer:
    def __init__(self, directory: Path, port: int, *names: str) -> None:
        self.directory = directory
        self.port = port
        self.socket = directory / balancer.SOCKET
        self.program = find_haproxy() or pytest.skip("needs haproxy")
        wanted = Wanted(engine="redis", version="7.0", node_type="cache.t3.micro", port=port, shards=())
        cache = Cache(
            uid="u",
            name="r",
            kind="group",
            region="us-east-1",
            created_at=dt.datetime.now(dt.UTC),
            wanted=wanted,
        )
        front = Front(name="reader", kind="balancer", address=ADDRESS, port=port)
        nodes = [
            Node(
                name=n, shard="1", zone="a", address=NODES[n], port=port, engine="redis", version="7.0", node_type="cache.t3.micro"
            )
            for n in names
        ]
        self.spec = balancer.spec(cache, front, nodes)
        for name, file in self.spec.files.items():
            (directory / name).write_text(str(file.content).replace("{listen}", ADDRESS))
        self.start()

    def start(self) -> None:
        argv = [self.program, *(a.replace("{dir}", str(self.directory)) for a in self.spec.argv[1:])]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=self.directory)
        eventually(lambda: accepts(ADDRESS, self.port))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def targets(self, *names: str) -> list[balancer.Backend]:
        return [(n, NODES[n], self.port) for n in names]

    def reached(self, connections: int = 6) -> set[str]:
        """Names that answer over so many connections, all open at once."""
        clients = [redis.Redis(ADDRESS, self.port, decode_responses=True, retry=None) for _ in range(connections)]
        try:
            return {str(c.get("name")) for c in clients}
        finally:
            for c in clients:
                c.close()


@pytest.fixture
def started(servers: int, tmp_path: Path) -> Iterator[Callable[..., Balancer]]:
    with ExitStack() as stack:
        directory = tmp_path / ("longer-than-the-path-of-a-unix-socket-may-be" * 3)
        directory.mkdir()

        def start(*names: str) -> Balancer:
            made = Balancer(directory, servers, *names)
            stack.callback(made.stop)
            return made

        yield start


async def test_it_points_where_it_is_told(started: Callable[..., Balancer]) -> None:
    one = started("r-001", "r-002")
    assert await balancer.pointed(one.socket) == ("r-001", "r-002")
    assert one.reached() == {"r-001", "r-002"}
    for names in (("r-002", "r-003"), ("r-003",), ("r-001", "r-002", "r-003"), ("r-001", "r-002", "r-003")):
        await balancer.point(one.socket, one.targets(*names))
        assert await balancer.pointed(one.socket) == names
        assert one.reached() == set(names)
    await balancer.point(one.socket, [])
    assert await balancer.pointed(one.socket) == ()
    with pytest.raises(redis.ConnectionError):
        one.reached()
    await balancer.point(one.socket, one.targets("r-002"))
    assert one.reached() == {"r-002"}


async def test_sessions_with_a_removed_node_end_and_others_go_on(started: Callable[..., Balancer]) -> None:
    one = started("r-001", "r-002")
    clients = [redis.Redis(ADDRESS, one.port, decode_responses=True, retry=None, single_connection_client=True) for _ in range(4)]
    where = {c: c.get("name") for c in clients}
    ids = {c: c.client_id() for c in clients}
    assert sorted(map(str, where.values())) == ["r-001", "r-001", "r-002", "r-002"]
    await balancer.point(one.socket, one.targets("r-002", "r-003"))
    for c in clients:
        if where[c] == "r-002":
            assert c.client_id() == ids[c]
        else:
            with pytest.raises(redis.ConnectionError):
                c.get("name")
        c.close()


async def test_a_restart_has_the_same_targets(started: Callable[..., Balancer]) -> None:
    one = started("r-001")
    await balancer.point(one.socket, one.targets("r-002", "r-003"))
    one.stop()
    one.start()
    assert await balancer.pointed(one.socket) == ("r-002", "r-003")
    assert one.reached() == {"r-002", "r-003"}


async def test_the_same_name_at_another_address(started: Callable[..., Balancer]) -> None:
    one = started("r-001", "r-002")
    await balancer.point(one.socket, [("r-001", NODES["r-003"], one.port), *one.targets("r-002")])
    assert one.reached() == {"r-002", "r-003"}
    assert await balancer.pointed(one.socket) == ("r-001", "r-002")


async def test_a_node_that_refuses_costs_no_client_an_error(started: Callable[..., Balancer]) -> None:
    one = started("r-001")
    await balancer.point(one.socket, [*one.targets("r-001"), ("dead", new_address(), one.port)])
    assert one.reached() == {"r-001"}


async def test_a_flood_takes_no_more_memory_than_it_is_held_to(started: Callable[..., Balancer]) -> None:
    """Clients that ask for much and read nothing: each fills its buffers, and whoever was there before is served as ever."""
    one = started("r-001")
    with redis.Redis(NODES["r-001"], one.port) as node:
        node.set("blob", bytes(6 << 20))

    def resident() -> int:
        return int(Path(f"/proc/{one.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    calm, flood = resident(), 50
    with ExitStack() as stack:
        before = stack.enter_context(redis.Redis(ADDRESS, one.port, decode_responses=True, single_connection_client=True))
        assert before.get("name") == "r-001"
        for _ in range(flood):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((ADDRESS, one.port))
            client.sendall(b"GET blob\r\n")
        eventually(lambda: resident() > calm + flood * (8 << 10))
        assert before.get("name") == "r-001"
        assert resident() < BALANCER_BYTES + flood * BALANCED_BYTES
    assert one.spec.limits.memory_bytes == BALANCER_BYTES + FRONT_CONNECTIONS["balancer"] * BALANCED_BYTES


async def test_its_socket_is_for_its_owner_and_its_silence_an_error(started: Callable[..., Balancer], tmp_path: Path) -> None:
    one = started()
    eventually(one.socket.exists)  # clients are accepted a moment before
    assert stat.S_IMODE(one.socket.stat().st_mode) == 0o600
    assert await balancer.pointed(one.socket) == ()
    one.stop()
    for order in (balancer.pointed(one.socket), balancer.point(one.socket, []), balancer.pointed(tmp_path / "none.sock")):
        with pytest.raises(OrderFailed, match="does not answer"):
            await asyncio.wait_for(order, 60)
