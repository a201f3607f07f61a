"""What a process may use: one formula for starting, resizing and asking for room."""

from __future__ import annotations

import pytest
from tests.engines.test_config import of

from cachekeep.engines.config import client_memory, maxmemory, parameter_values, settings, sort, within
from cachekeep.engines.limits import FRONT_CONNECTIONS, front_limits, limits, memory_needed
from cachekeep.engines.node_types import node_types, offered
from cachekeep.model import Front
from cachekeep.network import compatible_relay, relay

MIB = 1 << 20


@pytest.mark.parametrize("name", offered("valkey"))
def test_full_fragmented_and_forked_a_process_stays_below_its_limit(name: str) -> None:
    """On every node type: data twice for what fragmentation wastes, that twice for a fork, and every buffer at its bound."""
    cache, node = of(node_type=name)
    values, machine = parameter_values(sort(cache, node)), node_types()[name]
    data = maxmemory(values, machine)
    worst = 4 * data + machine.replica_buffer + int(values["repl-backlog-size"]) + client_memory(data, machine)
    found = limits(cache, node).memory_bytes or 0
    assert worst < found <= worst + 65 * MIB
    assert found % MIB == 0, "kernels count in pages, and would say another number than was asked for"
    assert found > machine.maxmemory, "the node type's own memory is the user's to fill"
    assert int(settings(cache, node).live["maxmemory-clients"]) == client_memory(data, machine)


def test_before_redis_7_each_replica_has_a_buffer_of_its_own() -> None:
    old, new = (limits(*of("redis", version)).memory_bytes or 0 for version in ("6.2.0", "7.0.15"))
    assert old - new == pytest.approx(4 * 53687091, abs=MIB)


@pytest.mark.parametrize(
    ("parameters", "bytes_more"),
    [
        ({"reserved-memory-percent": "0"}, 4 * 134217728 + 67108864),
        ({"reserved-memory-percent": "50"}, -4 * 134217728 - 67108864),
        ({"reserved-memory": "36870912"}, 4 * 97346816 + 48673408),
        ({"repl-backlog-size": "115343360"}, 104857600),
    ],
)
def test_parameters_that_change_what_is_needed_move_the_limit(parameters: dict[str, str], bytes_more: int) -> None:
    plain, changed = limits(*of()).memory_bytes or 0, limits(*of(parameters=parameters)).memory_bytes or 0
    assert changed - plain == pytest.approx(bytes_more, abs=2 * MIB)


def test_room_is_asked_for_by_the_same_formula() -> None:
    for engine, version in (("valkey", "8.0"), ("redis", "6.2"), ("memcached", "1.6.18")):
        cache, node = of(engine, version, parameters={"reserved-memory-percent": "10"} if engine != "memcached" else {})
        assert memory_needed(cache.wanted) == limits(cache, node).memory_bytes


def test_each_client_has_a_descriptor_and_the_engine_its_own() -> None:
    cache, node = of(node_type="cache.m5.large")
    live = settings(cache, node).live
    assert limits(cache, node).open_files == int(live["maxclients"]) + 128
    assert within(live, limits(cache, node).open_files) == live
    assert within(live, 20000)["maxclients"] == str(20000 - 128)
    assert within(live, None) == live


def test_fronts_have_two_descriptors_for_each_client() -> None:
    assert {kind: front_limits(Front(name="f", kind=kind, address="", port=1)).open_files for kind in FRONT_CONNECTIONS} == {  # type: ignore[arg-type]
        "balancer": 20100,
        "compatible": 20100,
        "discovery": 2100,
    }
    assert (FRONT_CONNECTIONS["discovery"], FRONT_CONNECTIONS["compatible"]) == (relay.CONNECTIONS, compatible_relay.CONNECTIONS)


def test_a_balancer_has_room_for_all_its_connections_at_their_worst() -> None:
    front = Front(name="f", kind="balancer", address="", port=1)
    buffers = FRONT_CONNECTIONS["balancer"] * 2 * 16384  # HAProxy, tune.bufsize
    assert (front_limits(front).memory_bytes or 0) > buffers + 14 * MIB
    assert front_limits(Front(name="f", kind="discovery", address="", port=1)).memory_bytes is None


def test_memcached_has_room_for_items_connections_and_its_hash_table() -> None:
    cache, node = of("memcached", "1.6.18")
    assert limits(cache, node).memory_bytes == (512 + 128 + 64) * MIB + -(-20000 * 1024 // MIB) * MIB
