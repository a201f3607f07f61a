"""Parameter families: the table is whole, and values are refused or made canonical."""

from __future__ import annotations

import pytest

from cachekeep.engines.catalogue import family_of
from cachekeep.engines.parameters import (
    check_together,
    default_groups,
    defaults,
    families,
    node_type_parameters,
    parameters,
    validate,
)
from cachekeep.errors import InvalidValue


@pytest.mark.parametrize("family", families())
def test_every_default_is_what_validation_would_make_of_it(family: str) -> None:
    for p in parameters(family).values():
        if p.default is not None and p.modifiable:
            assert validate(family, p.name, p.default) == p.default


@pytest.mark.parametrize("family", families())
def test_every_parameter_without_a_default_has_a_value_for_every_node_type(family: str) -> None:
    specific = node_type_parameters(family)
    assert {s.parameter.name for s in specific} == {p.name for p in parameters(family).values() if p.default is None}
    assert all(len(s.values) > 100 for s in specific)


@pytest.mark.parametrize(
    ("engine", "version", "family"),
    [
        ("redis", "5.0.6", "redis5.0"),
        ("redis", "6.2", "redis6.x"),
        ("redis", "7.1", "redis7"),
        ("valkey", "8.0.1", "valkey8"),
        ("memcached", "1.6.22", "memcached1.6"),
    ],
)
def test_family_of_a_version(engine: str, version: str, family: str) -> None:
    assert family_of(engine, version) == family


def test_default_groups_exist_with_and_without_cluster_mode() -> None:
    groups = default_groups()
    assert groups["default.valkey8"] == groups["default.valkey8.cluster.on"] == "valkey8"
    assert "default.memcached1.6.cluster.on" not in groups
    assert "default.redis2.8.cluster.on" not in groups
    assert (defaults("redis7")["cluster-enabled"], defaults("redis7", cluster_on=True)["cluster-enabled"]) == ("no", "yes")


@pytest.mark.parametrize(
    ("family", "name", "value", "canonical"),
    [
        ("redis7", "maxmemory-policy", " AllKeys-LRU ", "allkeys-lru"),
        ("redis7", "timeout", "020", "20"),
        ("redis7", "timeout", "0", "0"),
        ("redis7", "slowlog-log-slower-than", "-1", "-1"),
        ("redis7", "notify-keyspace-events", "Kxe", "Kxe"),
        ("memcached1.6", "chunk_size_growth_factor", "1.50", "1.5"),
        ("memcached1.6", "cas_disabled", "1", "1"),
        ("valkey8", "reserved-memory-percent", "0", "0"),
    ],
)
def test_values_are_made_canonical(family: str, name: str, value: str, canonical: str) -> None:
    assert validate(family, name, value) == canonical


@pytest.mark.parametrize(
    ("family", "name", "value", "why"),
    [
        ("redis7", "no-such", "1", "does not exist"),
        ("redis7", "commandlog-reply-larger-than", "1", "does not exist"),
        ("redis7", "maxmemory", "1", "cannot be modified"),
        ("redis7", "appendonly", "yes", "cannot be modified"),
        ("redis7", "rename-commands", "flushall blocked", "cannot be modified"),
        ("redis7", "timeout", "19", "0,20-"),
        ("redis7", "timeout", "ten", "integer"),
        ("redis7", "timeout", "١", "integer"),
        ("redis7", "timeout", "9" * 30, "integer"),
        ("redis7", "reserved-memory-percent", "101", "0-100"),
        ("redis7", "maxmemory-policy", "lru", "one of"),
        ("redis7", "notify-keyspace-events", "K!", "text"),
        ("redis7", "close-on-replica-write", "yes", "one of no"),
        ("memcached1.6", "cas_disabled", "yes", "0,1"),
        ("memcached1.6", "chunk_size_growth_factor", "1", "1.01-2"),
    ],
)
def test_other_values_are_refused_with_a_reason(family: str, name: str, value: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        validate(family, name, value)


def test_cluster_mode_is_set_only_in_a_group_that_no_cache_uses() -> None:
    assert validate("valkey8", "cluster-enabled", "yes") == "yes"
    with pytest.raises(InvalidValue, match="while a cache uses"):
        validate("valkey8", "cluster-enabled", "yes", attached=True)


def test_rules_between_parameters() -> None:
    check_together("redis7", {"active-defrag-cycle-min": "75"})
    with pytest.raises(InvalidValue, match="above"):
        check_together("redis7", {"active-defrag-cycle-min": "20", "active-defrag-cycle-max": "10"})
    with pytest.raises(InvalidValue, match="Only one"):
        check_together("redis7", {"reserved-memory": "1", "reserved-memory-percent": "1"})


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(InvalidValue, match="redis9"):
        parameters("redis9")
