"""What clients are told of a cache: its endpoints, in each mode and of each engine."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, decided, group, memcached

from cachekeep.model import Cache, Front, View
from cachekeep.model.endpoint import Endpoint, endpoint, endpoints, joined, node_endpoint, parted


def told(cache: Cache) -> dict[str, str]:
    return {e.kind: str(e) for e in endpoints(cache)}


def test_a_group_without_cluster_mode_has_two_for_its_shard() -> None:
    cache = group(3)
    (shard,) = cache.decided.shards
    assert told(cache) == {"primary": f"{shard.primary_address}:6379", "reader": f"{shard.reader_address}:6379"}
    assert endpoint(cache, "primary", "0001") == Endpoint(kind="primary", address=shard.primary_address or "", port=6379, of="0001")
    assert endpoint(cache, "primary", "0002") is None
    assert endpoint(cache, "configuration") is None


def test_nobody_is_told_of_one_that_is_not_decided() -> None:
    assert endpoints(group(3, settled=False)) == ()
    assert endpoints(memcached()) == ()


def test_memcached_has_one_where_its_nodes_are_found() -> None:
    cache = decided(memcached(), View(free_addresses=ADDRESSES))
    assert told(cache) == {"configuration": f"{cache.decided.configuration_address}:11211"}
    node = cache.decided.nodes[0]
    assert str(node_endpoint(node)) == f"{node.address}:11211"
    assert node_endpoint(node).of == node.name


def test_cluster_clients_are_told_where_to_ask_as_long_as_somebody_answers_there() -> None:
    base = group(2)
    address = "127.77.0.99"
    front = Front(name="configuration", kind="compatible", address=address, port=6379)
    with_front = replace(base, decided=replace(base.decided, configuration_address=address, fronts=(front,)))
    assert told(with_front)["configuration"] == f"{address}:6379"
    assert set(told(with_front)) == {"primary", "reader", "configuration"}
    leaving = replace(with_front, decided=replace(with_front.decided, fronts=(replace(front, leaving=True),)))
    assert "configuration" not in told(leaving)
    enabled = replace(
        with_front,
        wanted=replace(base.wanted, cluster_mode="enabled"),
        decided=replace(
            with_front.decided,
            fronts=(),
            mode="enabled",
            shards=tuple(replace(x, primary_address=None, reader_address=None) for x in base.decided.shards),
        ),
    )
    assert told(enabled) == {"configuration": f"{address}:6379"}


@pytest.mark.parametrize(
    ("address", "text"), [("127.0.0.1", "127.0.0.1:6379"), ("::1", "[::1]:6379"), ("svc.elsewhere", "svc.elsewhere:6379")]
)
def test_what_is_joined_is_parted_again(address: str, text: str) -> None:
    assert joined(address, 6379) == text
    assert parted(text) == (address, 6379)
