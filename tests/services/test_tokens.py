"""The AUTH token, as AWS's guide has it set, rotated and given up for a user group."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.rig import Refused, Rig, refused

from cachekeep.engines.users import hash_of
from cachekeep.model import Anybody, NamedUsers, TokenHolders
from cachekeep.services.elasticache.admission import STILL_OPEN

TLS = {"TransitEncryptionEnabled": True, "EngineVersion": "8.0"}
FIRST, SECOND, THIRD = (f"the-{which}-token-of-three" for which in ("first", "second", "third"))


def modify(rig: Rig, **more: Any) -> Any:
    return rig.cache.modify_replication_group(**{"ReplicationGroupId": "demo", "ApplyImmediately": True} | more)["ReplicationGroup"]


def refusal(rig: Rig, **more: Any) -> Refused:
    return refused(rig.cache.modify_replication_group, **{"ReplicationGroupId": "demo", "ApplyImmediately": True} | more)


def tokens(rig: Rig, name: str = "demo") -> tuple[tuple[str, ...], bool]:
    clients = rig.stored(name).wanted.clients
    assert isinstance(clients, TokenHolders)
    return clients.tokens, clients.optional


def team(rig: Rig) -> None:
    rig.cache.create_user_group(UserGroupId="team", Engine="redis", UserIds=["default"])


def test_a_group_with_a_token(rig: Rig) -> None:
    rig.group(AuthToken=FIRST, **TLS)
    assert tokens(rig) == ((hash_of(FIRST),), False)
    shown = rig.show()
    assert shown["AuthTokenEnabled"] is True
    assert shown["AuthTokenLastModifiedDate"]
    assert rig.show_cluster("demo-001")["AuthTokenEnabled"] is True
    assert FIRST not in str([rig.stored("demo"), shown, rig.told()])
    rig.single("one", AuthToken=FIRST, **TLS)
    assert tokens(rig, "one") == ((hash_of(FIRST),), False)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"AuthToken": FIRST, "EngineVersion": "8.0"}, "InvalidParameterCombination"),
        ({"AuthToken": FIRST, "UserGroupIds": ["team"]} | TLS, "InvalidParameterCombination"),
        ({"AuthToken": "too-short"} | TLS, "InvalidParameterValue"),
        ({"AuthToken": "x" * 129} | TLS, "InvalidParameterValue"),
        ({"AuthToken": "with spaces in between"} | TLS, "InvalidParameterValue"),
        ({"AuthToken": "with/slashes/in/between"} | TLS, "InvalidParameterValue"),
    ],
)
def test_a_token_that_cannot_be(rig: Rig, more: dict[str, Any], code: str) -> None:
    team(rig)
    assert refused(lambda **named: rig.group(**named), **more).code == code
    assert rig.cache.describe_replication_groups()["ReplicationGroups"] == []


def test_rotate_and_set(rig: Rig) -> None:
    rig.group(AuthToken=FIRST, **TLS)
    assert modify(rig, AuthToken=SECOND)["PendingModifiedValues"]["AuthTokenStatus"] == "ROTATING"
    assert tokens(rig) == ((hash_of(FIRST), hash_of(SECOND)), False)
    rig.keep()
    assert "AuthTokenStatus" not in rig.show()["PendingModifiedValues"]
    modify(rig, AuthToken=THIRD, AuthTokenUpdateStrategy="ROTATE")
    assert tokens(rig) == ((hash_of(SECOND), hash_of(THIRD)), False)
    rig.keep()
    assert modify(rig, AuthToken=THIRD, AuthTokenUpdateStrategy="SET")["PendingModifiedValues"]["AuthTokenStatus"] == "SETTING"
    assert tokens(rig) == ((hash_of(THIRD),), False)


def test_a_cache_that_had_none_goes_on_letting_everybody_in_until_one_is_set(rig: Rig) -> None:
    rig.group(**TLS)
    modify(rig, AuthToken=FIRST)
    assert tokens(rig) == ((hash_of(FIRST),), True)
    assert [event.message for event in rig.told() if "still come in" in event.message] == [STILL_OPEN]
    rig.keep()
    modify(rig, AuthToken=FIRST, AuthTokenUpdateStrategy="SET")
    assert tokens(rig) == ((hash_of(FIRST),), False)


def test_from_a_token_to_users_and_back(rig: Rig) -> None:
    team(rig)
    rig.group(AuthToken=FIRST, **TLS)
    assert refusal(rig, UserGroupIdsToAdd=["team"]).code == "InvalidParameterCombination"
    assert refusal(rig, AuthTokenUpdateStrategy="DELETE").code == "InvalidParameterCombination"
    modify(rig, AuthTokenUpdateStrategy="DELETE", UserGroupIdsToAdd=["team"])
    assert isinstance(rig.stored("demo").wanted.clients, NamedUsers)
    rig.keep()
    assert rig.show()["AuthTokenEnabled"] is False
    assert refusal(rig, AuthToken=FIRST).code == "InvalidParameterCombination"
    modify(rig, RemoveUserGroups=True, AuthToken=FIRST, AuthTokenUpdateStrategy="ROTATE")
    assert tokens(rig) == ((hash_of(FIRST),), True)


def test_what_is_refused_of_a_change(rig: Rig) -> None:
    rig.group(**TLS)
    assert refusal(rig, AuthToken=FIRST, ApplyImmediately=False).code == "InvalidParameterCombination"
    assert refusal(rig, AuthToken=FIRST, AuthTokenUpdateStrategy="DELETE").code == "InvalidParameterCombination"
    assert refusal(rig, AuthTokenUpdateStrategy="SET").code == "InvalidParameterCombination"
    assert refusal(rig, AuthToken="short").code == "InvalidParameterValue"
    assert rig.stored("demo").wanted.clients == Anybody()
    rig.group("plain", EngineVersion="8.0")
    assert refusal(rig, ReplicationGroupId="plain", AuthToken=FIRST).code == "InvalidParameterCombination"
    rig.memcached()
    token = {"AuthToken": FIRST, "ApplyImmediately": True}
    assert refused(rig.cache.modify_cache_cluster, CacheClusterId="mc", **token).code == "InvalidParameterCombination"
