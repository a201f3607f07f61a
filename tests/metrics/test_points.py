"""From what a node says to its data points: what grew within the minute, what is so now, and what nobody can know."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cachekeep.metrics.catalogue import FAMILIES, families, metrics_of
from cachekeep.metrics.datum import of_values, single
from cachekeep.metrics.points import About, Placed, behind_seconds, of_group, points
from cachekeep.model import Moment
from cachekeep.model.sample import Host, Sample

VALKEY = About(engine="valkey", vcpus=2, baseline_bits_per_second=1e9)
MEMCACHED = About(engine="memcached")


def sample(seconds: float, *, boot: str = "boot", host: Host | None = None, durations: object = None, **fields: object) -> Sample:
    known = {"run_id": "r", "role": "master", "pid": "7"} | {name: str(value) for name, value in fields.items()}
    return Sample(at=Moment(boot, seconds), fields=known, durations=durations or {}, host=host or Host())  # type: ignore[arg-type]


BEFORE = sample(
    100,
    total_connections_received=10,
    total_commands_processed=1000,
    keyspace_hits=50,
    keyspace_misses=50,
    used_cpu_user=1.0,
    used_cpu_sys=1.0,
    used_cpu_user_main_thread=0.5,
    used_cpu_sys_main_thread=0.5,
    master_replid="a",
    master_repl_offset=1000,
    cmdstat_get="calls=10,usec=100,usec_per_call=10.00",
    total_net_input_bytes=0,
    total_net_output_bytes=0,
    total_net_repl_output_bytes=0,
    evicted_keys=3,
)
AFTER = sample(
    160,
    total_connections_received=15,
    total_commands_processed=1600,
    keyspace_hits=80,
    keyspace_misses=60,
    used_cpu_user=7.0,
    used_cpu_sys=7.0,
    used_cpu_user_main_thread=3.5,
    used_cpu_sys_main_thread=3.5,
    master_replid="a",
    master_repl_offset=1500,
    cmdstat_get="calls=40,usec=700,usec_per_call=17.50",
    cmdstat_set="calls=2,usec=10,usec_per_call=5.00",
    **{"cmdstat_config|get": "calls=9,usec=9,usec_per_call=1.00"},
    total_net_input_bytes=600,
    total_net_output_bytes=75_000_000,
    total_net_repl_output_bytes=0,
    evicted_keys=3,
    used_memory=600,
    mem_not_counted_for_evict=100,
    maxmemory=1000,
    db0="keys=5,expires=2,avg_ttl=1000",
    db3="keys=1,expires=0,avg_ttl=0",
    rdb_bgsave_in_progress=1,
    mem_fragmentation_ratio=1.25,
)


def test_what_grew_and_what_is_so() -> None:
    found = {name: datum.total for name, datum in points(BEFORE, AFTER, VALKEY).items()}
    wanted = {
        "NewConnections": 5,
        "ProcessedCommands": 600,
        "CacheHits": 30,
        "CacheMisses": 10,
        "CacheHitRate": 75,
        "Evictions": 0,
        "CPUUtilization": 10,  # 12 s of a minute, of two CPUs
        "EngineCPUUtilization": 10,
        "ReplicationBytes": 500,
        "GetTypeCmds": 30,
        "GetTypeCmdsLatency": 20,
        "SetTypeCmds": 2,
        "SetTypeCmdsLatency": 5,
        "StringBasedCmds": 32,
        "StringBasedCmdsLatency": round(610 / 32, 3),
        "HashBasedCmds": 0,
        "NonKeyTypeCmds": 9,
        "NetworkBytesIn": 600,
        "NetworkBytesOut": 75_000_000,
        "NetworkBaselineUsageOutPercentage": 1,
        "BytesUsedForCache": 600,
        "DatabaseMemoryUsagePercentage": 60,
        "DatabaseMemoryUsageCountedForEvictPercentage": 50,
        "CurrItems": 6,
        "CurrVolatileItems": 2,
        "DB0AverageTTL": 1000,
        "IsMaster": 1,
        "SaveInProgress": 1,
        "MemoryFragmentationRatio": 1.25,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert "HashBasedCmdsLatency" not in found  # nothing was called, so nothing took long or short
    assert set(found) <= set(metrics_of("valkey"))


GROWTHS = {
    "NewConnections",
    "CacheHits",
    "CacheHitRate",
    "CPUUtilization",
    "EngineCPUUtilization",
    "GetTypeCmds",
    "ReplicationBytes",
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, AFTER),
        (BEFORE, replace(AFTER, at=Moment("boot", 220))),  # a minute was missed
        (BEFORE, replace(AFTER, at=Moment("boot", 110))),
        (BEFORE, replace(AFTER, at=Moment("another", 160))),
        (BEFORE, replace(AFTER, fields={**AFTER.fields, "run_id": "s"})),  # another process
        (BEFORE, replace(AFTER, fields={**AFTER.fields, "total_commands_processed": "3"})),  # CONFIG RESETSTAT
        (BEFORE, replace(AFTER, fields={**AFTER.fields, "keyspace_hits": "0"})),
    ],
)
def test_a_gap_is_a_gap(before: Sample | None, after: Sample) -> None:
    found = points(before, after, VALKEY)
    assert not GROWTHS & set(found)
    assert found["CurrItems"] == single(6.0)


def test_a_new_history_tells_nothing_of_what_was_replicated() -> None:
    """An offset of another stream is a number of another kind."""
    promoted = replace(AFTER, fields={**AFTER.fields, "master_replid": "b", "master_repl_offset": "900000"})
    assert "ReplicationBytes" not in points(BEFORE, promoted, VALKEY)
    assert points(BEFORE, promoted, VALKEY)["CacheHits"] == single(30.0)


def test_nothing_is_ever_negative() -> None:
    """Whatever a node says: of each field that fell there is nothing."""
    for field in BEFORE.fields:
        fell = replace(AFTER, fields={**AFTER.fields, field: "0" if not field.startswith("cmdstat") else "calls=1,usec=1"})
        told = points(BEFORE, fell, VALKEY)
        assert min(datum.low for datum in told.values()) >= 0, field


def test_a_replica_lags_by_its_primarys_word() -> None:
    primary = sample(
        1, slave0="ip=127.0.0.2,port=6379,state=online,offset=5,lag=3", slave1="ip=127.0.0.3,port=6379,state=wait_bgsave,lag=0"
    )
    assert behind_seconds(primary, "127.0.0.2", 6379) == 3
    assert behind_seconds(primary, "127.0.0.3", 6379) is None
    assert behind_seconds(None, "127.0.0.2", 6379) is None
    replica = sample(1, role="slave", master_link_status="up", db0="keys=1,expires=0,avg_ttl=9")
    found = points(None, replica, replace(VALKEY, behind_seconds=3.0))
    assert (found["ReplicationLag"], found["MasterLinkHealthStatus"], found["IsMaster"]) == (single(3.0), single(1.0), single(0.0))
    assert "DB0AverageTTL" not in found
    cut = sample(1, role="slave", master_link_status="down", master_link_down_since_seconds=42)
    assert points(None, cut, VALKEY)["ReplicationLag"] == single(42.0)
    never = sample(1, role="slave", master_link_status="down", master_link_down_since_seconds=-1)
    assert "ReplicationLag" not in points(None, never, VALKEY)


def test_durations_are_those_of_this_minute() -> None:
    before = replace(BEFORE, durations={"get": ((8, 100), (16, 110)), "info": ((8, 1),)})
    after = replace(AFTER, durations={"get": ((8, 101), (16, 111), (33, 114)), "set": ((16, 2),), "info": ((8, 50),)})
    found = points(before, after, VALKEY)
    assert found["SuccessfulReadRequestLatency"] == of_values([(8, 1), (33, 3)])
    assert found["SuccessfulWriteRequestLatency"] == of_values([(16, 2)])
    reset = replace(AFTER, durations={"get": ((8, 50),)})
    assert "SuccessfulReadRequestLatency" not in points(before, reset, VALKEY)


def test_without_histograms_each_call_took_as_long_as_its_commands_average() -> None:
    found = points(BEFORE, AFTER, VALKEY)
    assert found["SuccessfulReadRequestLatency"] == of_values([(20, 30)])
    assert found["SuccessfulWriteRequestLatency"] == of_values([(5, 2)])


def test_memcached() -> None:
    before = sample(0, uptime=5, total_connections=3, cmd_get=10, get_hits=6, rusage_user=0.0, rusage_system=0.0, bytes_read=10)
    after = sample(
        60,
        uptime=65,
        total_connections=4,
        cmd_get=30,
        get_hits=16,
        rusage_user=3.0,
        rusage_system=3.0,
        bytes_read=110,
        bytes=500,
        limit_maxbytes=2000,
        curr_items=2,
        curr_connections=12,
    )
    found = {name: datum.total for name, datum in points(before, after, MEMCACHED).items()}
    wanted = {
        "CmdGet": 20,
        "GetHits": 10,
        "NewConnections": 1,
        "CPUUtilization": 10,
        "BytesReadIntoMemcached": 100,
        "NetworkBytesIn": 100,
    }
    wanted |= {"BytesUsedForCacheItems": 500, "UnusedMemory": 1500, "CurrItems": 2, "CurrConnections": 12}
    assert {name: found.get(name) for name in wanted} == wanted
    younger = replace(after, fields={**after.fields, "uptime": "3"})
    assert "CmdGet" not in points(before, younger, MEMCACHED)


def test_faults_and_memory_are_the_hosts_to_tell() -> None:
    before = replace(BEFORE, host=Host(freeable_bytes=9, swap_bytes=0, major_faults=5))
    after = replace(AFTER, host=Host(freeable_bytes=7, swap_bytes=1, major_faults=8))
    found = points(before, after, VALKEY)
    assert [found[name].total for name in ("FreeableMemory", "SwapUsage", "MajorPageFaults")] == [7, 1, 3]
    assert not {"FreeableMemory", "SwapUsage", "MajorPageFaults"} & set(points(BEFORE, AFTER, VALKEY))


def test_of_groups_shards_and_roles() -> None:
    told = {"EngineCPUUtilization": single(10.0), "DatabaseMemoryUsageCountedForEvictPercentage": single(50.0)}
    nodes = [
        Placed("0001", "Primary", told),
        Placed("0001", "Replica", {"EngineCPUUtilization": single(2.0)}),
        Placed("0002", "Primary", {"EngineCPUUtilization": single(6.0)}),
    ]
    found = of_group("demo", nodes)
    of = {dimensions: data["EngineCPUUtilization"].average for dimensions, data in found.items()}
    assert of == {
        (("ReplicationGroupId", "demo"),): 6,
        (("NodeGroupId", "0001"), ("ReplicationGroupId", "demo")): 6,
        (("NodeGroupId", "0002"), ("ReplicationGroupId", "demo")): 6,
        (("ReplicationGroupId", "demo"), ("Role", "Primary")): 8,
        (("ReplicationGroupId", "demo"), ("Role", "Replica")): 2,
    }


def test_every_command_is_of_a_family_that_is_told() -> None:
    assert set().union(*families().values()) == set(FAMILIES)
    assert families()["hget"] == {"GetType", "HashBased"}
    assert families()["lpop"] == {"SetType", "ListBased"}
