"""``cachekeep top``: rates from two scrapes."""

from __future__ import annotations

from cachekeep.cli.top import figures, rates
from cachekeep.metrics.prometheus import Scraped, exposition, points_of
from cachekeep.model import Moment
from cachekeep.model.sample import Sample


def scrape(**fields: str) -> str:
    nodes = [("valkey", "demo", "demo-001"), ("memcached", "mc", "mc.0001")]
    said = Sample(at=Moment("b", 0), fields=fields)
    return exposition([p for engine, cache, node in nodes for p in points_of(Scraped(engine, "a", 1, cache, node, "", said))])


def test_rates_are_those_of_the_time_between() -> None:
    before = scrape(total_commands_processed="100", keyspace_hits="10", keyspace_misses="10", get_hits="5", get_misses="5")
    now = scrape(
        total_commands_processed="160",
        keyspace_hits="40",
        keyspace_misses="20",
        get_hits="11",
        get_misses="5",
        used_memory="7",
        maxmemory="9",
        connected_clients="3",
    )
    valkey, memcached = rates(figures(before, None), figures(now, None), 2.0)
    assert (valkey["operations_per_second"], valkey["hit_percent"], valkey["memory_bytes"], valkey["clients"]) == (30, 75, 7, 3)
    assert (memcached["operations_per_second"], memcached["hit_percent"]) == (3, 100)
    assert [row["node"] for row in rates(figures(before, "mc"), figures(now, "mc"), 2.0)] == ["mc.0001"]


def test_what_began_anew_has_no_rates() -> None:
    (row, _) = rates(
        figures(scrape(total_commands_processed="100"), None), figures(scrape(total_commands_processed="3"), None), 2.0
    )
    assert "operations_per_second" not in row
    assert row["up"] == 1
