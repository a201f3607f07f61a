from __future__ import annotations

from collections.abc import Iterator

import pytest
import valkey

from patterns_rig.servers import Server, engine, memcached, postgres


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _shared_engine() -> Iterator[Server]:
    with engine() as server:
        yield server


@pytest.fixture
def server(_shared_engine: Server) -> Server:
    """An engine that tests share and do not hurt, emptied."""
    with valkey.Valkey(port=_shared_engine.port) as admin:
        admin.flushall()
    return _shared_engine


@pytest.fixture
def frail() -> Iterator[Server]:
    """An engine of this test's own, to be hurt."""
    with engine() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_memcached() -> Iterator[Server]:
    with memcached() as server:
        yield server


@pytest.fixture
def memory(_shared_memcached: Server) -> Server:
    from pymemcache.client.base import Client

    Client(("127.0.0.1", _shared_memcached.port)).flush_all(noreply=False)
    return _shared_memcached


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    with postgres() as server:
        yield server
