"""Parameter groups and parameters."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import SETTINGS, Rig, refused

from cachekeep.engines import parameters as tables
from cachekeep.services.elasticache.quotas import PARAMETER_GROUPS


def make(rig: Rig, name: str = "mine", family: str = "valkey8") -> dict[str, Any]:
    return rig.cache.create_cache_parameter_group(CacheParameterGroupName=name, CacheParameterGroupFamily=family, Description="d")[
        "CacheParameterGroup"
    ]


def change(rig: Rig, name: str = "mine", **values: str) -> Any:
    listed = [{"ParameterName": key.replace("_", "-"), "ParameterValue": value} for key, value in values.items()]
    return rig.cache.modify_cache_parameter_group(CacheParameterGroupName=name, ParameterNameValues=listed)


def values(rig: Rig, name: str = "mine", **more: str) -> dict[str, str]:
    pages = rig.cache.get_paginator("describe_cache_parameters").paginate(CacheParameterGroupName=name, **more)
    return {p["ParameterName"]: p.get("ParameterValue") for page in pages for p in page["Parameters"]}


def test_create_describe_delete(rig: Rig) -> None:
    made = make(rig, "Mine")
    assert made == {
        "CacheParameterGroupName": "mine",
        "CacheParameterGroupFamily": "valkey8",
        "Description": "d",
        "IsGlobal": False,
        "ARN": rig.arn("parametergroup", "mine"),
    }
    assert rig.cache.describe_cache_parameter_groups(CacheParameterGroupName="MINE")["CacheParameterGroups"] == [made]
    rig.cache.delete_cache_parameter_group(CacheParameterGroupName="mine")
    error = refused(rig.cache.describe_cache_parameter_groups, CacheParameterGroupName="mine")
    assert (error.code, error.status) == ("CacheParameterGroupNotFound", 404)


def test_the_default_groups_are_there_and_stay(rig: Rig) -> None:
    make(rig)
    pages = rig.cache.get_paginator("describe_cache_parameter_groups").paginate(PaginationConfig={"PageSize": 20})
    names = [g["CacheParameterGroupName"] for page in pages for g in page["CacheParameterGroups"]]
    assert set(names) == {*tables.default_groups(), "mine"}
    assert names == sorted(names)
    for call in (rig.cache.delete_cache_parameter_group, rig.cache.reset_cache_parameter_group):
        assert refused(call, CacheParameterGroupName="default.valkey8").code == "InvalidCacheParameterGroupState"
    assert refused(change, rig=rig, name="default.valkey8", timeout="30").code == "InvalidCacheParameterGroupState"
    assert refused(make, rig=rig, name="default.valkey8").code == "CacheParameterGroupAlreadyExists"


def test_only_what_was_set_has_the_source_user(rig: Rig) -> None:
    """Terraform reads one page of Source=user and takes it for the whole truth."""
    make(rig)
    change(rig, maxmemory_policy="allkeys-lru", maxmemory_samples="7", timeout="30")
    assert values(rig, Source="user") == {"maxmemory-policy": "allkeys-lru", "maxmemory-samples": "7", "timeout": "30"}
    assert "timeout" not in values(rig, Source="system")
    assert values(rig)["timeout"] == "30"
    error = refused(rig.cache.describe_cache_parameters, CacheParameterGroupName="mine", Source="nobody")
    assert error.code == "InvalidParameterValue"


def test_clients_know_two_data_types(rig: Rig) -> None:
    for family in tables.families():
        pages = rig.cache.get_paginator("describe_engine_default_parameters").paginate(CacheParameterGroupFamily=family)
        found = {p["DataType"] for page in pages for p in page["EngineDefaults"]["Parameters"]}
        assert found <= {"integer", "string"}


def test_paging_over_plain_and_node_type_parameters(rig: Rig) -> None:
    pages = list(
        rig.cache.get_paginator("describe_engine_default_parameters").paginate(
            CacheParameterGroupFamily="valkey8", PaginationConfig={"PageSize": 20}
        )
    )
    plain = [p["ParameterName"] for page in pages for p in page["EngineDefaults"]["Parameters"]]
    by_type = [p for page in pages for p in page["EngineDefaults"].get("CacheNodeTypeSpecificParameters", [])]
    assert len(pages) > 3
    assert sorted(plain + [p["ParameterName"] for p in by_type]) == sorted(tables.parameters("valkey8"))
    maxmemory = next(p for p in by_type if p["ParameterName"] == "maxmemory")
    assert {"CacheNodeType": "cache.t3.micro", "Value": "536870912"} in maxmemory["CacheNodeTypeSpecificValues"]
    assert (
        refused(rig.cache.describe_engine_default_parameters, CacheParameterGroupFamily="oracle9").code == "InvalidParameterValue"
    )


def test_a_change_reaches_every_cache_that_uses_the_group(rig: Rig) -> None:
    make(rig)
    rig.group("a", EngineVersion="8.0", CacheParameterGroupName="mine")
    rig.single("b", EngineVersion="8.0", CacheParameterGroupName="mine")
    rig.group("other", EngineVersion="8.0")
    before = rig.stored("other")
    woken: list[str] = []
    rig.store.on_change(woken.append)
    change(rig, timeout="30")
    for name in ("a", "b"):
        assert rig.stored(name).wanted.parameters == {"timeout": "30"}
    assert set(woken) == {rig.stored("a").uid, rig.stored("b").uid}
    assert rig.stored("other") == before
    assert rig.show("a")["Status"] == "modifying"
    rig.keep()
    rig.cache.reset_cache_parameter_group(CacheParameterGroupName="mine", ResetAllParameters=True)
    assert rig.stored("a").wanted.parameters == {}


def test_a_new_cache_gets_the_values_of_its_group(rig: Rig) -> None:
    make(rig)
    change(rig, timeout="30")
    rig.group(EngineVersion="8.0", CacheParameterGroupName="MINE")
    assert rig.stored("demo").wanted.parameters == {"timeout": "30"}
    assert rig.show_cluster("demo-001")["CacheParameterGroup"]["CacheParameterGroupName"] == "mine"


def test_another_group_for_a_cache(rig: Rig) -> None:
    make(rig)
    change(rig, timeout="30")
    rig.group(EngineVersion="8.0")
    rig.cache.modify_replication_group(ReplicationGroupId="demo", CacheParameterGroupName="mine")
    assert rig.stored("demo").wanted.parameters == {"timeout": "30"}
    rig.keep()
    rig.cache.modify_replication_group(ReplicationGroupId="demo", CacheParameterGroupName="default.valkey8")
    assert rig.stored("demo").wanted.parameters == {}


@pytest.mark.parametrize(
    "listed",
    [
        {"nope": "1"},
        {"timeout": "5"},
        {"timeout": "much"},
        {"maxmemory": "100"},
        {"maxmemory_policy": "some"},
        {"reserved_memory": "100", "reserved_memory_percent": "20"},
    ],
    ids=str,
)
def test_bad_values(rig: Rig, listed: dict[str, str]) -> None:
    make(rig)
    assert refused(change, rig=rig, **listed).code == "InvalidParameterValue"
    assert values(rig, Source="user") == {}


def test_twenty_at_a_time(rig: Rig) -> None:
    make(rig)
    listed = [{"ParameterName": name, "ParameterValue": "1"} for name in list(tables.parameters("valkey8"))[:21]]
    error = refused(rig.cache.modify_cache_parameter_group, CacheParameterGroupName="mine", ParameterNameValues=listed)
    assert error.code == "InvalidParameterValue"
    assert "20" in error.message


def test_a_value_may_be_empty(rig: Rig) -> None:
    make(rig)
    change(rig, notify_keyspace_events="KEA")
    change(rig, notify_keyspace_events="")
    assert rig.stored_group("mine").values == {"notify-keyspace-events": ""}


def test_some_values_are_reset(rig: Rig) -> None:
    """Terraform sends them with the values that they have."""
    make(rig)
    change(rig, timeout="30", maxmemory_samples="7")
    rig.cache.reset_cache_parameter_group(
        CacheParameterGroupName="mine", ParameterNameValues=[{"ParameterName": "timeout", "ParameterValue": "30"}]
    )
    assert values(rig, Source="user") == {"maxmemory-samples": "7"}
    error = refused(rig.cache.reset_cache_parameter_group, CacheParameterGroupName="mine")
    assert error.code == "InvalidParameterCombination"
    error = refused(
        rig.cache.reset_cache_parameter_group, CacheParameterGroupName="mine", ParameterNameValues=[{"ParameterName": "nope"}]
    )
    assert (error.code, error.message) == ("InvalidParameterValue", "Parameter nope doesn't exist")


def test_a_group_in_use_cannot_be_deleted(rig: Rig) -> None:
    make(rig)
    rig.group(EngineVersion="8.0", CacheParameterGroupName="mine")
    assert refused(rig.cache.delete_cache_parameter_group, CacheParameterGroupName="mine").code == "InvalidCacheParameterGroupState"
    rig.cache.delete_replication_group(ReplicationGroupId="demo")
    rig.keep()
    rig.cache.delete_cache_parameter_group(CacheParameterGroupName="mine")


@pytest.mark.parametrize(
    ("name", "family", "code"),
    [
        ("mine", "valkey8", "CacheParameterGroupAlreadyExists"),
        ("9mine", "valkey8", "InvalidParameterValue"),
        ("other", "oracle9", "InvalidParameterValue"),
    ],
)
def test_bad_groups(rig: Rig, name: str, family: str, code: str) -> None:
    make(rig)
    assert refused(make, rig=rig, name=name, family=family).code == code


def test_the_quota_of_groups() -> None:
    rig = Rig(replace(SETTINGS, quotas={PARAMETER_GROUPS: 1}))
    make(rig)
    assert refused(make, rig=rig, name="more").code == "CacheParameterGroupQuotaExceeded"
    rig.close()


def test_changes_are_events(rig: Rig) -> None:
    make(rig)
    change(rig, timeout="30")
    told = [(e.source_type, e.source, e.message) for e in rig.told()]
    assert told[-1] == ("cache-parameter-group", "mine", "Updated parameter timeout to 30")
