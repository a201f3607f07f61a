"""Node types and which may become which."""

from __future__ import annotations

from cachekeep.engines.node_types import allowed_modifications, node_type, node_types, offered


def test_published_figures() -> None:
    micro = node_type("cache.t3.micro")
    assert micro is not None
    assert (micro.maxmemory, micro.maxclients, micro.vcpu, micro.cache_mb) == (536870912, 20000, 2, 512)
    assert node_type("cache.x9.huge") is None
    assert len(node_types()) == 112


def test_what_the_table_leaves_out_is_filled_soundly() -> None:
    for n in node_types().values():
        assert n.vcpu > 0, n
        assert 0.07 < n.replica_buffer / n.maxmemory < 0.15, n
        if n.cache_mb is not None and n.name != "cache.m4.xlarge":  # its sources disagree by a quarter
            assert 0.85 < n.maxmemory / (n.cache_mb * 2**20) < 1.15 or n.generation == "previous", n


def test_up_is_at_least_as_much_memory_and_down_is_less() -> None:
    up, down = allowed_modifications("valkey", "cache.m6g.large")
    assert {"cache.m5.large", "cache.m6g.xlarge", "cache.r6g.large"} <= set(up)
    assert {"cache.t3.micro", "cache.t4g.medium"} <= set(down)
    assert not set(up) & set(down)
    assert "cache.m6g.large" not in (*up, *down)


def test_previous_generations_are_left_and_never_entered() -> None:
    up, down = allowed_modifications("redis", "cache.m3.medium")
    assert "cache.t3.medium" in up
    assert all(n is not None and n.generation == "current" for n in map(node_type, (*up, *down)))


def test_data_tiering_is_neither_entered_nor_left() -> None:
    up, down = allowed_modifications("redis", "cache.r6gd.2xlarge")
    assert down == ("cache.r6gd.xlarge",)
    assert all(".r6gd." in name for name in up)
    assert not any(".r6gd." in name for name in allowed_modifications("redis", "cache.r6g.large")[0])
    assert not any(".r6gd." in name for name in offered("memcached"))


def test_an_unknown_type_may_become_nothing() -> None:
    assert allowed_modifications("redis", "cache.x9.huge") == ((), ())
