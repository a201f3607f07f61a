"""Real engines on private loopback addresses, one fresh database per test."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import valkey
import valkey.asyncio
from tests.addresses import free_port, new_address

from cachekeep_patterns.sessions import AsyncSessionStore, Policy, Retry, SessionStore
from patterns_rig.session_engines import ENGINES, Engine, wait_for


@pytest.fixture(scope="session")
def start_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def start(program: str, *options: str, address: str | None = None, port: int | None = None) -> Engine:
        address = address or new_address()
        directory: Path = tmp_path_factory.mktemp("engine")
        port = port or free_port(address)
        base = ["--port", str(port), "--cluster-announce-ip", address, "--dir", str(directory), "--save", "", "--daemonize", "no"]
        if "--bind" not in options:
            base += ["--bind", address]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen([program, *base, *options], stdout=log, stderr=log)
        engine = Engine(process, address, port)
        started.append(engine)

        def up() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            return bool(engine.client().ping())

        wait_for(up, f"start of {program}")
        return engine

    yield start
    for engine in started:
        if engine.process.poll() is None:
            engine.kill()


@pytest.fixture(scope="session", params=ENGINES or [pytest.param("none", marks=pytest.mark.skip("needs an engine"))])
def engine(request: pytest.FixtureRequest, start_engine: Callable[..., Engine]) -> Engine:
    return start_engine(request.param)


@pytest.fixture
def server(engine: Engine) -> Engine:
    engine.client().flushall()
    return engine


@pytest.fixture
def client(server: Engine) -> Iterator[valkey.Valkey]:
    with server.client() as client:
        yield client


@pytest.fixture
def store(client: valkey.Valkey) -> SessionStore:
    return SessionStore(client)


@pytest.fixture
async def async_store(server: Engine) -> Any:
    async with valkey.asyncio.Valkey(host=server.address, port=server.port, socket_timeout=5) as client:
        yield AsyncSessionStore(client)


@pytest.fixture(scope="session", params=ENGINES or [pytest.param("none", marks=pytest.mark.skip("needs an engine"))])
def cluster(request: pytest.FixtureRequest, start_engine: Callable[..., Engine]) -> list[Engine]:
    """Three primaries, no replicas."""
    nodes = [start_engine(request.param, "--cluster-enabled", "yes") for _ in range(3)]
    for at, node in enumerate(nodes):
        last = 16383 if at == 2 else (at + 1) * 5461 - 1
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", at * 5461, last)
    for node in nodes[1:]:
        nodes[0].client().execute_command("CLUSTER", "MEET", node.address, node.port)
    for node in nodes:
        wait_for(lambda node=node: node.client().cluster("info")["cluster_state"] == "ok", "the cluster's forming")
        wait_for(lambda node=node: len(node.client().cluster("nodes")) == 3, "the nodes' acquaintance")
    return nodes


@pytest.fixture
def eager() -> Callable[..., SessionStore]:
    """A store with its own policy over a client."""

    def make(client: Any, **policy: Any) -> SessionStore:
        return SessionStore(client, Policy(**policy), Retry(deadline_seconds=10))

    return make
