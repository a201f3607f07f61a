"""Cluster mode: sessions and users lie in different slots, and nothing minds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import valkey
import valkey.asyncio

from cachekeep_patterns.sessions import AsyncSessionStore, SessionStore
from patterns_rig.session_engines import Engine


@pytest.fixture
def store(cluster: list[Engine]) -> Iterator[SessionStore]:
    client = valkey.ValkeyCluster(host=cluster[0].address, port=cluster[0].port, socket_timeout=5)
    yield SessionStore(client)
    client.close()


def test_sessions_spread_over_the_nodes_and_end_together(store: SessionStore, cluster: list[Engine]) -> None:
    ids = []
    for number in range(24):
        session = store.load(None)
        session["n"] = number
        session.login("ada" if number % 2 else "bob")
        store.save(session)
        ids.append(session.id)
    assert all(node.client().dbsize() > 0 for node in cluster)
    for number, each in enumerate(ids):
        one, two = store.load(each), store.load(each)
        one["a"], two["b"] = 1, 2
        store.save(one)
        store.save(two)
        assert dict(store.load(each)) == {"n": number, "a": 1, "b": 2}
    before = store.load(ids[0])
    before.rotate()
    store.save(before)
    assert store.load(ids[0]).new
    ids[0] = before.id
    kept = store.load(ids[1])
    assert store.logout_everywhere("ada", keep=kept) == 11
    assert store.logout_everywhere("bob") == 12
    assert [number for number, each in enumerate(ids) if not store.load(each).new] == [1]


async def test_the_async_store_in_a_cluster(cluster: list[Engine]) -> None:
    async with valkey.asyncio.ValkeyCluster(host=cluster[0].address, port=cluster[0].port) as client:
        store = AsyncSessionStore(client)
        for number in range(12):
            session = await store.load(None)
            session["n"] = number
            session.login("eve")
            await store.save(session)
            assert (await store.load(session.id))["n"] == number
        assert await store.logout_everywhere("eve") == 12
