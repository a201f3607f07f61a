"""Users and user groups by boto3: what they look like, what is refused and how, and what caches come to want."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.services.rig import Refused, Rig
from tests.services.rig import refused as refused_by

from cachekeep.engines.users import hash_of
from cachekeep.model import Anybody, ClientUser, NamedUsers
from cachekeep.wire.model import service_model

MODEL = service_model("elasticache")
PASSWORD, OTHER = "correct horse battery", "a second password!"


def refused(function: Any, *given: Any, **params: Any) -> Refused:
    return refused_by(lambda **named: function(*given, **named), **params)


def user(rig: Rig, id: str = "app", **more: Any) -> Any:
    wanted = {"UserName": id, "Engine": "redis", "AccessString": "on ~* +@all", "Passwords": [PASSWORD]} | more
    return rig.cache.create_user(UserId=id, **{k: v for k, v in wanted.items() if v is not None})


def shut(rig: Rig) -> None:
    """A default user that nobody can come as, as AWS's guide makes it."""
    user(rig, "shut", UserName="default", AccessString="off -@all", Passwords=None, NoPasswordRequired=True)


def team(rig: Rig, *users: str, engine: str = "redis", id: str = "team") -> Any:
    return rig.cache.create_user_group(UserGroupId=id, Engine=engine, **({"UserIds": list(users)} if users else {}))


def show(rig: Rig, id: str) -> Any:
    return rig.cache.describe_users(UserId=id)["Users"][0]


def clients(rig: Rig, name: str = "demo") -> dict[str, ClientUser]:
    found = rig.stored(name).wanted.clients
    assert isinstance(found, NamedUsers)
    return {u.name: u for u in found.users}


# ------------------------------------------------------------------ users


def test_a_user_is_shown_as_aws_shows_it(rig: Rig) -> None:
    made = user(rig, "appUser", UserName="app", AccessString="+get", Tags=[{"Key": "k", "Value": "v"}])
    made.pop("ResponseMetadata")
    arn = rig.arn("user", "appuser")
    assert made == {
        "UserId": "appUser",
        "UserName": "app",
        "Status": "active",
        "Engine": "redis",
        "MinimumEngineVersion": "6.0",
        "AccessString": "off -@all +get",
        "UserGroupIds": [],
        "Authentication": {"Type": "password", "PasswordCount": 1},
        "ARN": arn,
    }
    assert show(rig, "APPUSER") == made
    assert rig.cache.list_tags_for_resource(ResourceName=arn)["TagList"] == [{"Key": "k", "Value": "v"}]
    assert rig.cache.delete_user(UserId="appUser")["Status"] == "deleting"
    assert refused(rig.cache.describe_users, UserId="appUser").code == "UserNotFound"
    assert refused(rig.cache.list_tags_for_resource, ResourceName=arn).code == "UserNotFound"


def test_the_default_user_is_always_there_and_never_changes(rig: Rig) -> None:
    (default,) = rig.cache.describe_users()["Users"]
    assert (default["UserId"], default["AccessString"]) == ("default", "on ~* +@all")
    assert default["Authentication"] == {"Type": "no-password"}
    assert (default["Status"], default["Engine"], default["MinimumEngineVersion"]) == ("active", "redis", "6.0")
    assert refused(rig.cache.modify_user, UserId="default", AccessString="off").code == "InvalidParameterValue"
    assert refused(rig.cache.delete_user, UserId="default").code == "InvalidParameterValue"
    assert refused(user, rig, "default").code == "UserAlreadyExists"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"Passwords": None}, "InvalidParameterCombination"),
        ({"Passwords": None, "NoPasswordRequired": True, "Engine": "valkey"}, "InvalidParameterCombination"),
        ({"NoPasswordRequired": True}, "InvalidParameterCombination"),
        ({"Passwords": ["short"]}, "InvalidParameterValue"),
        ({"Passwords": ["x" * 129]}, "InvalidParameterValue"),
        ({"Passwords": ["with a / in it somewhere"]}, "InvalidParameterValue"),
        ({"Passwords": ["ümläute are not taken"]}, "InvalidParameterValue"),
        ({"Passwords": [PASSWORD, OTHER, "the third of them"]}, "InvalidParameterValue"),
        ({"AuthenticationMode": {"Type": "password", "Passwords": [PASSWORD]}}, "InvalidParameterCombination"),
        ({"Passwords": None, "AuthenticationMode": {"Type": "password"}}, "InvalidParameterCombination"),
        ({"Passwords": None, "AuthenticationMode": {"Type": "iam"}}, "InvalidParameterCombination"),
        ({"Engine": "memcached"}, "InvalidParameterValue"),
        ({"UserName": "two words"}, "InvalidParameterValue"),
        ({"UserName": "cachekeep-admin"}, "InvalidParameterValue"),
        ({"AccessString": "on ~* +config"}, "InvalidParameterValue"),
        ({"AccessString": "on >password +@all"}, "InvalidParameterValue"),
    ],
)
def test_a_user_that_cannot_be(rig: Rig, more: dict[str, Any], code: str) -> None:
    assert refused(user, rig, **more).code == code
    assert [u["UserId"] for u in rig.cache.describe_users()["Users"]] == ["default"]


def test_passwords_are_kept_as_hashes_and_never_told(rig: Rig) -> None:
    shut(rig)
    user(rig, Passwords=[PASSWORD, OTHER])
    team(rig, "shut", "app")
    rig.group(UserGroupIds=["team"])
    assert clients(rig)["app"].passwords == (hash_of(PASSWORD), hash_of(OTHER))
    assert show(rig, "app")["Authentication"] == {"Type": "password", "PasswordCount": 2}
    everything = str([rig.stored("demo"), rig.cache.describe_users(), rig.cache.describe_user_groups(), rig.told()])
    assert PASSWORD not in everything
    assert OTHER not in everything


def test_a_change_of_a_user_reaches_what_its_caches_want(rig: Rig) -> None:
    shut(rig)
    user(rig)
    team(rig, "shut", "app")
    rig.group(UserGroupIds=["team"])
    assert show(rig, "app")["Status"] == "active"
    changed = rig.cache.modify_user(UserId="app", AppendAccessString="-@write", Passwords=[OTHER])
    assert (changed["Status"], changed["AccessString"]) == ("modifying", "on ~* +@all -@write")
    assert clients(rig)["app"] == ClientUser(name="app", access="on ~* +@all -@write", passwords=(hash_of(OTHER),))
    assert rig.cache.describe_user_groups()["UserGroups"][0]["Status"] == "modifying"
    rig.keep()
    assert show(rig, "app")["Status"] == "active"
    assert rig.cache.describe_user_groups()["UserGroups"][0]["Status"] == "active"
    assert refused(rig.cache.modify_user, UserId="app").message == "No modifications were requested"
    both = refused(rig.cache.modify_user, UserId="app", AccessString="on", AppendAccessString="+get")
    assert both.code == "InvalidParameterCombination"
    rig.cache.delete_user(UserId="app")
    assert set(clients(rig)) == {"default"}
    assert refused(rig.cache.delete_user, UserId="shut").code == "DefaultUserAssociatedToUserGroup"


def test_who_is_found_by_filters(rig: Rig) -> None:
    shut(rig)
    user(rig)
    user(rig, "vk", Engine="VALKEY")
    team(rig, "shut", "app")

    def found(**asked: Any) -> list[str]:
        return [u["UserId"] for u in rig.cache.describe_users(**asked)["Users"]]

    def by(name: str, *values: str) -> list[str]:
        return found(Filters=[{"Name": name, "Values": list(values)}])

    assert found() == ["app", "default", "shut", "vk"]
    assert found(Engine="valkey") == by("engine", "VALKEY") == ["vk"]
    assert by("user-name", "default") == ["default", "shut"]
    assert by("user-group-id", "team", "other") == ["app", "shut"]
    assert by("user-id", "APP", "vk") == ["app", "vk"]
    assert refused(by, "shoe-size", "9").code == "InvalidParameterCombination"
    for number in range(30):
        user(rig, f"u{number:02}")
    first = rig.cache.describe_users(MaxRecords=20)
    rest = rig.cache.describe_users(Marker=first["Marker"])
    assert [u["UserId"] for u in first["Users"] + rest["Users"]] == found()
    assert "Marker" not in rest


# ------------------------------------------------------------------ groups


@pytest.mark.parametrize(
    ("users", "engine", "code"),
    [
        (["app"], "redis", "DefaultUserRequired"),
        ([], "redis", "DefaultUserRequired"),
        (["default", "nobody"], "redis", "UserNotFound"),
        (["default", "shut"], "redis", "DuplicateUserName"),
        (["default", "vk"], "redis", "InvalidParameterCombination"),
        (["default", "vk"], "valkey", "InvalidParameterCombination"),
        (["vk"], "memcached", "InvalidParameterValue"),
    ],
)
def test_a_group_that_cannot_be(rig: Rig, users: list[str], engine: str, code: str) -> None:
    shut(rig)
    user(rig)
    user(rig, "vk", Engine="valkey")
    assert refused(team, rig, *users, engine=engine).code == code
    assert rig.cache.describe_user_groups()["UserGroups"] == []


def test_a_group_is_shown_as_aws_shows_it(rig: Rig) -> None:
    shut(rig)
    user(rig)
    made = team(rig, "shut", "app")
    made.pop("ResponseMetadata")
    assert made == {
        "UserGroupId": "team",
        "Status": "active",
        "Engine": "redis",
        "UserIds": ["shut", "app"],
        "MinimumEngineVersion": "6.0",
        "PendingChanges": {},
        "ReplicationGroups": [],
        "ARN": rig.arn("usergroup", "team"),
    }
    assert refused(team, rig, "shut").code == "UserGroupAlreadyExists"
    rig.group(UserGroupIds=["team"])
    assert rig.cache.describe_user_groups(UserGroupId="team")["UserGroups"][0]["ReplicationGroups"] == ["demo"]
    assert show(rig, "app")["UserGroupIds"] == ["team"]
    assert refused(rig.cache.delete_user_group, UserGroupId="team").code == "InvalidUserGroupState"
    rig.cache.modify_replication_group(ReplicationGroupId="demo", RemoveUserGroups=True)
    assert rig.cache.delete_user_group(UserGroupId="team")["Status"] == "deleting"
    assert refused(rig.cache.describe_user_groups, UserGroupId="team").code == "UserGroupNotFound"


def test_a_change_of_a_group_reaches_what_its_caches_want(rig: Rig) -> None:
    shut(rig)
    user(rig)
    user(rig, "other")
    team(rig, "shut", "app")
    rig.group(UserGroupIds=["team"])
    changed = rig.cache.modify_user_group(UserGroupId="team", UserIdsToAdd=["other"], UserIdsToRemove=["app"])
    assert (changed["Status"], changed["UserIds"]) == ("modifying", ["shut", "other"])
    assert set(clients(rig)) == {"default", "other"}
    modify = rig.cache.modify_user_group
    gone = refused(modify, UserGroupId="team", UserIdsToRemove=["app"])
    assert (gone.code, "not a member" in gone.message) == ("InvalidParameterValue", True)
    assert refused(modify, UserGroupId="team", UserIdsToAdd=["other"]).code == "InvalidParameterValue"
    assert refused(modify, UserGroupId="team", UserIdsToRemove=["shut"]).code == "DefaultUserRequired"
    assert refused(modify, UserGroupId="team", UserIdsToAdd=["default"]).code == "DuplicateUserName"
    assert refused(modify, UserGroupId="team", UserIdsToAdd=["nobody"]).code == "UserNotFound"
    assert refused(modify, UserGroupId="team").code == "InvalidParameterCombination"
    swapped = modify(UserGroupId="team", UserIdsToAdd=["default"], UserIdsToRemove=["shut"])
    assert swapped["UserIds"] == ["other", "default"]


# ------------------------------------------------------------------ caches


def test_a_cache_gets_and_loses_a_group(rig: Rig) -> None:
    shut(rig)
    user(rig)
    team(rig, "shut", "app")
    team(rig, "default", id="open")
    rig.group()
    modify = rig.cache.modify_replication_group
    assert refused(modify, ReplicationGroupId="demo", UserGroupIdsToAdd=["nobody"]).code == "UserGroupNotFound"
    assert refused(modify, ReplicationGroupId="demo", UserGroupIdsToAdd=["team", "open"]).code == "InvalidParameterCombination"
    assert refused(modify, ReplicationGroupId="demo", UserGroupIdsToRemove=["team"]).code == "InvalidParameterValue"
    assert modify(ReplicationGroupId="demo", UserGroupIdsToAdd=["team"])["ReplicationGroup"]["UserGroupIds"] == ["team"]
    rig.keep()
    assert refused(modify, ReplicationGroupId="demo", UserGroupIdsToAdd=["open"]).code == "InvalidParameterCombination"
    modify(ReplicationGroupId="demo", UserGroupIdsToAdd=["open"], UserGroupIdsToRemove=["team"])
    assert rig.show()["UserGroupIds"] == ["open"]
    rig.keep()
    modify(ReplicationGroupId="demo", UserGroupIdsToRemove=["open"])
    assert rig.stored("demo").wanted.clients == Anybody()


def test_a_cache_that_is_too_old_or_of_another_engine_does_not_get_a_group(rig: Rig) -> None:
    shut(rig)
    user(rig, AccessString="on %R~* +@read")
    user(rig, "vk", Engine="valkey")
    team(rig, "shut", "app")
    team(rig, "vk", engine="valkey", id="vks")
    new = {"Engine": "redis", "EngineVersion": "6.2"}
    old = refused(rig.group, "old", UserGroupIds=["team"], **new)
    assert (old.code, "needs engine version 7.0" in old.message) == ("InvalidParameterCombination", True)
    assert refused(rig.group, "old", UserGroupIds=["vks"], **new).code == "InvalidParameterCombination"
    rig.cache.modify_user(UserId="app", AccessString="on ~* +@read")
    rig.group("old", UserGroupIds=["team"], **new)
    assert refused(rig.cache.modify_user, UserId="app", AccessString="on %R~* +@read").code == "InvalidParameterCombination"
    assert refused(rig.cache.modify_user_group, UserGroupId="team", Engine="valkey").code == "InvalidParameterCombination"
    assert clients(rig, "old")["app"].access == "on ~* -@all +@read"


# ------------------------------------------------------------------ the guide


def test_what_the_guide_says_is_done(rig: Rig) -> None:
    """Its commands, as aws-cli sends them."""
    rig.group()
    rig.group("tokens", EngineVersion="8.0", TransitEncryptionEnabled=True, AuthToken="the-first-token-of-16-or-more")
    text = (Path(__file__).parents[2] / "docs/guide/users.md").read_text()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            asked: dict[str, list[str]] = {}
            aws, service, command, *words = shlex.split(line)
            assert (aws, service) == ("aws", "elasticache")
            for word in words:
                name, equals, value = word.partition("=")
                if word.startswith("--"):
                    asked[name] = [value] if equals else []
                else:
                    asked[list(asked)[-1]].append(word)
            members = MODEL.operation("".join(map(str.title, command.split("-")))).input
            assert members is not None
            params: dict[str, Any] = {}
            for option, values in asked.items():
                name = "".join(map(str.title, option[2:].split("-")))
                kind = members.members[name].shape.type
                params[name] = values if kind == "list" else True if kind == "boolean" else values[0]
            getattr(rig.cache, command.replace("-", "_"))(**params)
            rig.keep()
    assert set(clients(rig)) == {"default", "app"}
    assert clients(rig)["default"].access == "off -@all"
    assert clients(rig)["app"].passwords == (hash_of("the-next-one-of-16-or-more"),)
    assert rig.stored("tokens").wanted.clients.tokens == (hash_of("the-next-token-of-16-or-more"),)  # type: ignore[union-attr]
    assert show(rig, "reader")["AccessString"] == "on ~* -@all +@read -@dangerous"
