"""What a scrape says: names, labels, and a text that Prometheus's own parser reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from cachekeep.cli import cachekeep
from cachekeep.metrics.prometheus import Exposed, Scraped, exposition, points_of
from cachekeep.model import Moment
from cachekeep.model.sample import Sample
from cachekeep.settings import ENDPOINT_FILE, ServedAt

VALKEY = {
    "role": "master",
    "redis_version": "7.2.4",
    "uptime_in_seconds": "9",
    "connected_clients": "3",
    "used_memory": "1000",
    "maxmemory": "4000",
    "total_commands_processed": "12",
    "keyspace_hits": "5",
    "db0": "keys=4,expires=1,avg_ttl=2500",
    "cmdstat_config|get": "calls=2,usec=3000000,usec_per_call=1.5,rejected_calls=0,failed_calls=1",
    "slave0": "ip=127.0.0.2,port=6379,state=online,offset=7,lag=1",
    "errorstat_WRONGTYPE": "count=2",
}
MEMCACHED = {
    "version": "1.6.18",
    "uptime": "4",
    "get_hits": "3",
    "get_misses": "1",
    "cmd_set": "2",
    "curr_items": "2",
    "rusage_user": "0.5",
}


def scraped(engine: str, fields: dict[str, str] | None) -> Scraped:
    said = None if fields is None else Sample(at=Moment("b", 0), fields=fields)
    return Scraped(engine, "127.0.0.1", 6379, 'de"mo\\', "demo-001", "0001", said)


def read(*nodes: Scraped) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = exposition([point for node in nodes for point in points_of(node)])
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {k: v for k, v in sample.labels.items() if k not in ("instance", "cache", "node", "shard")}
            assert {"instance": "127.0.0.1:6379", "cache": 'de"mo\\'}.items() <= sample.labels.items()
            found.setdefault(sample.name, []).append((own, sample.value))
    return found


def test_a_valkey_node_is_told_as_redis_exporter_does() -> None:
    found = read(scraped("valkey", VALKEY))
    wanted: dict[str, tuple[dict[str, str], float]] = {
        "redis_up": ({}, 1),
        "redis_uptime_in_seconds": ({}, 9),
        "redis_connected_clients": ({}, 3),
        "redis_memory_used_bytes": ({}, 1000),
        "redis_memory_max_bytes": ({}, 4000),
        "redis_commands_processed_total": ({}, 12),
        "redis_keyspace_hits_total": ({}, 5),
        "redis_db_keys": ({"db": "db0"}, 4),
        "redis_db_keys_expiring": ({"db": "db0"}, 1),
        "redis_db_avg_ttl_seconds": ({"db": "db0"}, 2.5),
        "redis_commands_total": ({"cmd": "config|get"}, 2),
        "redis_commands_duration_seconds_total": ({"cmd": "config|get"}, 3),
        "redis_commands_failed_calls_total": ({"cmd": "config|get"}, 1),
        "redis_connected_slave_lag_seconds": ({"slave_ip": "127.0.0.2", "slave_port": "6379", "slave_state": "online"}, 1),
        "redis_errors_total": ({"err": "WRONGTYPE"}, 2),
    }
    assert {name: found[name] for name in wanted} == {name: [value] for name, value in wanted.items()}
    assert found["redis_instance_info"][0][0]["redis_version"] == "7.2.4"
    replica = read(scraped("redis", {"role": "slave", "master_host": "a", "master_port": "1", "master_link_status": "up"}))
    assert replica["redis_master_link_up"] == [({"master_host": "a", "master_port": "1"}, 1)]


def test_a_memcached_node_is_told_as_memcached_exporter_does() -> None:
    found = read(scraped("memcached", MEMCACHED))
    assert found["memcached_up"] == [({}, 1)]
    assert found["memcached_version"] == [({"version": "1.6.18"}, 1)]
    assert found["memcached_commands_total"] == [
        ({"command": "get", "status": "hit"}, 3),
        ({"command": "get", "status": "miss"}, 1),
        ({"command": "set", "status": "hit"}, 2),
    ]
    assert found["memcached_current_items"] == [({}, 2)]


def test_a_node_that_does_not_answer_is_down() -> None:
    assert read(scraped("valkey", None)) == {"redis_up": [({}, 0)]}
    assert read(scraped("memcached", None)) == {"memcached_up": [({}, 0)]}


def test_lines_of_a_metric_are_together() -> None:
    points = [Exposed(name, "gauge", {"n": str(number)}, 0.5) for number in range(2) for name in ("a", "b")]
    assert exposition(points).splitlines() == [
        "# TYPE a gauge",
        'a{n="0"} 0.5',
        'a{n="1"} 0.5',
        "# TYPE b gauge",
        'b{n="0"} 0.5',
        'b{n="1"} 0.5',
    ]


def test_the_configuration_names_endpoint_and_token(tmp_path: Path) -> None:
    result = CliRunner().invoke(cachekeep, ["prometheus-config", "--data-dir", str(tmp_path), "--port", "9999"])
    assert result.exit_code == 0
    assert f'credentials_file: "{tmp_path}/metrics.token"' in result.output
    assert 'targets: ["127.0.0.1:9999"]' in result.output
    assert "honor_labels: true" in result.output
    assert "scheme" not in result.output
    (tmp_path / ENDPOINT_FILE).write_bytes(msgspec.json.encode(ServedAt("https://127.0.0.1:1234", "us-east-1")))
    by_tls = CliRunner().invoke(cachekeep, ["prometheus-config", "--data-dir", str(tmp_path)]).output
    assert 'targets: ["127.0.0.1:1234"]' in by_tls
    assert f'scheme: https\n    tls_config:\n      ca_file: "{tmp_path}/' in by_tls
