"""Security groups as EC2 has them: made, given rules, used by caches, taken away; with its codes and words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import ACCOUNT, SETTINGS, Rig, refused
from tests.services.test_enforced import Bob

from cachekeep.model.security_group import SecurityGroup
from cachekeep.wire.caller import Principal
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

DEFAULT = SETTINGS.security_group_id
TAGS = [{"Key": "team", "Value": "web"}]


@pytest.fixture
def ec2(rig: Rig) -> Any:
    return rig.client("ec2")


def made(ec2: Any, name: str = "web", **more: Any) -> str:
    return str(ec2.create_security_group(GroupName=name, Description="d", **more)["GroupId"])


def shown(ec2: Any, id: str) -> dict[str, Any]:
    (group,) = ec2.describe_security_groups(GroupIds=[id])["SecurityGroups"]
    return dict(group)


def at(port: int, *blocks: str, groups: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    pairs = [{"GroupId": each} for each in groups]
    return [
        {
            "IpProtocol": "tcp",
            "FromPort": port,
            "ToPort": port,
            "IpRanges": [{"CidrIp": b} for b in blocks],
            "UserIdGroupPairs": pairs,
        }
    ]


# ------------------------------------------------------------------ groups


def test_a_new_group_lets_nobody_in_and_its_members_out(ec2: Any) -> None:
    tags = [{"ResourceType": "security-group", "Tags": [{"Key": "team", "Value": "web"}]}]
    made_group = ec2.create_security_group(GroupName="web", Description="d", TagSpecifications=tags)
    group = shown(ec2, made_group["GroupId"])
    assert group["IpPermissions"] == []
    (out,) = group["IpPermissionsEgress"]
    assert (out["IpProtocol"], out["IpRanges"]) == ("-1", [{"CidrIp": "0.0.0.0/0"}])
    assert group["Tags"] == made_group["Tags"] == [{"Key": "team", "Value": "web"}]
    assert group["SecurityGroupArn"] == f"arn:aws:ec2:us-east-1:{ACCOUNT}:security-group/{group['GroupId']}"
    assert made_group["SecurityGroupArn"] == group["SecurityGroupArn"]


def test_the_default_group_lets_in_whom_the_installation_says() -> None:
    for who, peers in (("everybody", {"0.0.0.0/0", "::/0"}), ("members", {DEFAULT})):
        rig = Rig(replace(SETTINGS, default_ingress=who))
        rules = rig.client("ec2").describe_security_group_rules()["SecurityGroupRules"]
        found = {r.get("CidrIpv4") or r.get("CidrIpv6") or r["ReferencedGroupInfo"]["GroupId"] for r in rules if not r["IsEgress"]}
        assert found == peers
        rig.close()


@pytest.mark.parametrize(
    ("operation", "params", "code", "words"),
    [
        (
            "create_security_group",
            {"GroupName": "web", "Description": "d"},
            "InvalidGroup.Duplicate",
            "'web' already exists for VPC",
        ),
        (
            "create_security_group",
            {"GroupName": "sg-x", "Description": "d"},
            "InvalidParameterValue",
            "may not be in the format sg-*",
        ),
        ("create_security_group", {"GroupName": "a\tb", "Description": "d"}, "InvalidParameterValue", "GroupName is invalid"),
        ("create_security_group", {"GroupName": "a", "Description": "ä"}, "InvalidParameterValue", "GroupDescription is invalid"),
        ("create_security_group", {"GroupName": "default", "Description": "d"}, "InvalidParameterValue", "reserved"),
        ("create_security_group", {"GroupName": "a", "Description": "d", "VpcId": "vpc-1"}, "InvalidVpcID.NotFound", "vpc-1"),
        ("delete_security_group", {"GroupId": "sg-00000000"}, "InvalidGroup.NotFound", "'sg-00000000' does not exist"),
        ("delete_security_group", {"GroupName": "nope"}, "InvalidGroup.NotFound", "'nope' does not exist"),
        ("delete_security_group", {"GroupId": "web"}, "InvalidGroupId.Malformed", 'Invalid id: "web" (expecting "sg-...")'),
        ("delete_security_group", {}, "MissingParameter", "groupName or groupId"),
        ("delete_security_group", {"GroupId": DEFAULT}, "CannotDelete", "cannot be deleted by a user"),
        ("describe_security_groups", {"GroupIds": ["sg-00000000"]}, "InvalidGroup.NotFound", "'sg-00000000' does not exist"),
        ("create_tags", {"Resources": ["sg-00000000"], "Tags": TAGS}, "InvalidGroup.NotFound", "does not exist"),
        ("create_tags", {"Resources": ["sgr-0"], "Tags": TAGS}, "InvalidSecurityGroupRuleId.NotFound", "does not exist"),
        ("create_tags", {"Resources": ["i-0"], "Tags": TAGS}, "InvalidID", "'i-0' is not valid"),
    ],
)
def test_what_is_no_group(ec2: Any, operation: str, params: dict[str, Any], code: str, words: str) -> None:
    made(ec2)
    error = refused(getattr(ec2, operation), **params)
    assert (error.code, words in error.message) == (code, True), error.message


def test_a_group_that_is_needed_cannot_be_deleted(rig: Rig, ec2: Any) -> None:
    used, named = made(ec2, "used"), made(ec2, "named")
    rig.group(SecurityGroupIds=[used])
    ec2.authorize_security_group_ingress(GroupId=used, IpPermissions=at(6379, groups=(named,)))
    for group, needs in ((used, "demo"), (named, used)):
        error = refused(ec2.delete_security_group, GroupId=group)
        assert (error.code, needs in error.message) == ("DependencyViolation", True)
    rig.cache.delete_replication_group(ReplicationGroupId="demo")
    assert refused(ec2.delete_security_group, GroupId=used).code == "DependencyViolation"  # its nodes may still be there
    rig.keep()
    ec2.delete_security_group(GroupId=used)
    ec2.delete_security_group(GroupName="named")
    assert [g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"]] == ["default"]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("tag:team", "web", ["web"]),
        ("tag-key", "te*", ["web"]),
        ("ip-permission.cidr", "10.0.0.0/8", ["web"]),
        ("ip-permission.from-port", "6379", ["web"]),
        ("egress.ip-permission.protocol", "-1", ["default", "web"]),
        ("group-name", "d*", ["default"]),
    ],
)
def test_filters(ec2: Any, name: str, value: str, found: list[str]) -> None:
    web = made(ec2)
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=at(6379, "10.0.0.0/8"))
    ec2.create_tags(Resources=[web], Tags=[{"Key": "team", "Value": "web"}])
    groups = ec2.describe_security_groups(Filters=[{"Name": name, "Values": [value]}])["SecurityGroups"]
    assert [g["GroupName"] for g in groups] == found


# ------------------------------------------------------------------ rules


def test_rules_come_and_go(ec2: Any) -> None:
    web = made(ec2)
    asked = at(6379, "10.1.2.3/8", "10.64.0.0/10", groups=(web,))
    answer = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=asked)["SecurityGroupRules"]
    assert [r.get("CidrIpv4") for r in answer] == ["10.0.0.0/8", "10.64.0.0/10", None]
    assert answer[2]["ReferencedGroupInfo"] == {"GroupId": web, "UserId": ACCOUNT}
    (permission,) = shown(ec2, web)["IpPermissions"]
    assert [each["CidrIp"] for each in permission["IpRanges"]] == ["10.0.0.0/8", "10.64.0.0/10"]
    assert permission["UserIdGroupPairs"] == [{"GroupId": web, "UserId": ACCOUNT}]
    gone = ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=at(6379, "10.0.0.0/8"))["RevokedSecurityGroupRules"]
    assert [r["SecurityGroupRuleId"] for r in gone] == [answer[0]["SecurityGroupRuleId"]]
    ids = [r["SecurityGroupRuleId"] for r in answer[1:]]
    ec2.revoke_security_group_ingress(GroupId=web, SecurityGroupRuleIds=ids)
    assert shown(ec2, web)["IpPermissions"] == []


def test_a_rule_by_itself(ec2: Any) -> None:
    """As aws_vpc_security_group_ingress_rule has it."""
    web = made(ec2)
    tags = [{"ResourceType": "security-group-rule", "Tags": [{"Key": "k", "Value": "v"}]}]
    permission = {
        "IpProtocol": "6",
        "FromPort": 6379,
        "ToPort": 6380,
        "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "office"}],
    }
    (rule,) = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission], TagSpecifications=tags)[
        "SecurityGroupRules"
    ]
    id = rule["SecurityGroupRuleId"]
    (seen,) = ec2.describe_security_group_rules(SecurityGroupRuleIds=[id])["SecurityGroupRules"]
    assert seen == rule
    assert (rule["IpProtocol"], rule["Description"], rule["Tags"]) == ("tcp", "office", [{"Key": "k", "Value": "v"}])
    new = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 2, "ReferencedGroupId": web}
    ec2.modify_security_group_rules(GroupId=web, SecurityGroupRules=[{"SecurityGroupRuleId": id, "SecurityGroupRule": new}])
    (seen,) = ec2.describe_security_group_rules(SecurityGroupRuleIds=[id])["SecurityGroupRules"]
    assert (seen["FromPort"], seen["ReferencedGroupInfo"]["GroupId"], seen["Tags"]) == (1, web, rule["Tags"])
    assert "Description" not in seen
    assert "CidrIpv4" not in seen
    told = [{"SecurityGroupRuleId": id, "Description": "now"}]
    ec2.update_security_group_rule_descriptions_ingress(GroupId=web, SecurityGroupRuleDescriptions=told)
    (seen,) = ec2.describe_security_group_rules(SecurityGroupRuleIds=[id])["SecurityGroupRules"]
    assert seen["Description"] == "now"
    ec2.delete_tags(Resources=[id], Tags=[{"Key": "k"}])
    assert [tag for tag in ec2.describe_tags()["Tags"] if tag["ResourceId"] == id] == []


def test_as_terraform_makes_and_deletes_a_group(ec2: Any) -> None:
    """aws_security_group: what lets out goes first, whether it is there or not; before the end it asks who has the group."""
    web = made(ec2)
    everything = {"IpProtocol": "-1", "FromPort": 0, "ToPort": 0}
    ec2.revoke_security_group_egress(GroupId=web, IpPermissions=[everything | {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
    other = [everything | {"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}]
    error = refused(ec2.revoke_security_group_egress, GroupId=web, IpPermissions=other)
    assert error.code == "InvalidPermission.NotFound"
    ec2.authorize_security_group_egress(GroupId=web, IpPermissions=at(6379, "10.0.0.0/8"))
    assert shown(ec2, web)["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "10.0.0.0/8"}]
    holders = ec2.describe_network_interfaces(Filters=[{"Name": "group-id", "Values": [web]}])
    assert holders["NetworkInterfaces"] == []
    ec2.delete_security_group(GroupId=web)


TCP = {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379}
REFUSED: list[tuple[list[dict[str, Any]], str, str]] = [
    (
        at(6379, "10.0.0.0/8"),
        "InvalidPermission.Duplicate",
        '"peer: 10.0.0.0/8, TCP, from port: 6379, to port: 6379, ALLOW" already',
    ),
    (at(6379, "10.9.9.9/8"), "InvalidPermission.Duplicate", "already exists"),
    (at(1, "10.0.0.0/8", "10.0.0.0/8"), "InvalidParameterValue", "must not appear multiple times"),
    (at(1, "10.0.0.0"), "InvalidParameterValue", "CIDR block 10.0.0.0 is malformed"),
    (at(1, "10.0.0.0/33"), "InvalidParameterValue", "is malformed"),
    (at(1, "::/0"), "InvalidParameterValue", "is malformed"),
    (at(1, "127.0.0.1/32"), "InvalidParameterValue", "every user of this machine may take any address"),
    (at(1, groups=("sg-00000000",)), "InvalidGroup.NotFound", "'sg-00000000' does not exist"),
    (at(70000, "10.0.0.0/8"), "InvalidParameterValue", "Invalid TCP port range (70000-70000)"),
    (
        [{"IpProtocol": "tcp", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}],
        "InvalidParameterValue",
        "Must specify both from and to ports",
    ),
    ([TCP | {"IpProtocol": "foo", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}], "InvalidParameterValue", "'foo' for IP protocol"),
    ([TCP | {"IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "ä"}]}], "InvalidParameterValue", "Invalid rule description"),
    ([TCP], "MissingParameter", "ipPermissions"),
    ([], "MissingParameter", "ipPermissions"),
    (at(1, *(f"10.{n}.0.0/16" for n in range(60))), "RulesPerSecurityGroupLimitExceeded", "maximum number of rules"),
]


@pytest.mark.parametrize(("asked", "code", "words"), REFUSED)
def test_what_is_no_rule(ec2: Any, asked: list[dict[str, Any]], code: str, words: str) -> None:
    web = made(ec2)
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=at(6379, "10.0.0.0/8"))
    before = shown(ec2, web)
    error = refused(ec2.authorize_security_group_ingress, GroupId=web, IpPermissions=asked)
    assert (error.code, words in error.message) == (code, True), error.message
    assert shown(ec2, web) == before


def test_what_is_not_there_cannot_be_revoked(ec2: Any) -> None:
    web = made(ec2)
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=at(6379, "10.0.0.0/8"))
    error = refused(ec2.revoke_security_group_ingress, GroupId=web, IpPermissions=at(6379, "10.0.0.0/8", "10.1.0.0/16"))
    assert (error.code, error.message) == (
        "InvalidPermission.NotFound",
        "The specified rule does not exist in this security group.",
    )
    (out,) = [r for r in ec2.describe_security_group_rules()["SecurityGroupRules"] if r["IsEgress"] and r["GroupId"] == web]
    error = refused(ec2.revoke_security_group_ingress, GroupId=web, SecurityGroupRuleIds=[out["SecurityGroupRuleId"]])
    assert error.code == "InvalidSecurityGroupRuleId.NotFound"
    assert len(shown(ec2, web)["IpPermissions"]) == 1


def test_two_rules_cannot_become_one(ec2: Any) -> None:
    web = made(ec2)
    rules = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=at(1, "10.1.0.0/16", "10.2.0.0/16"))[
        "SecurityGroupRules"
    ]
    new = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIpv4": "10.1.0.0/16"}
    both = [{"SecurityGroupRuleId": rules[1]["SecurityGroupRuleId"], "SecurityGroupRule": new}]
    assert refused(ec2.modify_security_group_rules, GroupId=web, SecurityGroupRules=both).code == "InvalidPermission.Duplicate"


# ------------------------------------------------------------------ caches and machines


def test_caches_have_groups(rig: Rig, ec2: Any) -> None:
    web, other = made(ec2), made(ec2, "other")
    rig.group(SecurityGroupIds=[web, other, web])
    rig.single("one")
    assert rig.show_cluster("demo-001")["SecurityGroups"] == [{"SecurityGroupId": id, "Status": "active"} for id in (web, other)]
    assert rig.show_cluster("one")["SecurityGroups"] == [{"SecurityGroupId": DEFAULT, "Status": "active"}]
    rig.cache.modify_cache_cluster(CacheClusterId="one", SecurityGroupIds=[web])
    rig.cache.modify_replication_group(ReplicationGroupId="demo", SecurityGroupIds=[other])
    assert rig.show_cluster("one")["SecurityGroups"] == [{"SecurityGroupId": web, "Status": "active"}]
    assert rig.show_cluster("demo-001")["SecurityGroups"] == [{"SecurityGroupId": other, "Status": "active"}]
    rig.keep()
    error = refused(rig.cache.modify_cache_cluster, CacheClusterId="one", SecurityGroupIds=["sg-1"])
    assert (error.code, "sg-1 does not exist" in error.message) == ("InvalidParameterValue", True)


def test_what_nobody_can_keep_is_refused() -> None:
    """Without root or nft a rule would be stored and keep nobody out."""
    rig = Rig(replace(SETTINGS, no_filter="this needs root"))
    ec2 = rig.client("ec2")
    rule = {"GroupId": DEFAULT, "IpPermissions": at(6379, "10.0.0.0/8")}
    (default,) = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [DEFAULT]}])["SecurityGroupRules"][:1]
    update = [{"SecurityGroupRuleId": default["SecurityGroupRuleId"], "SecurityGroupRule": TCP | {"CidrIpv4": "10.0.0.0/8"}}]
    for call in (
        lambda: ec2.create_security_group(GroupName="web", Description="d"),
        lambda: ec2.authorize_security_group_ingress(**rule),
        lambda: ec2.authorize_security_group_egress(**rule),
        lambda: ec2.revoke_security_group_ingress(**rule),
        lambda: ec2.revoke_security_group_egress(**rule),
        lambda: ec2.modify_security_group_rules(GroupId=DEFAULT, SecurityGroupRules=update),
    ):
        error = refused(call)
        assert (error.code, "this needs root" in error.message) == ("UnsupportedOperation", True)

    async def stored() -> list[SecurityGroup]:
        async with rig.store.reading() as tx:
            return await tx.list(SecurityGroup)

    assert rig.run(stored()) == []
    rig.close()


# ------------------------------------------------------------------ policies


@pytest.fixture
def guarded() -> Iterator[tuple[Rig, Bob]]:
    rig = Rig(auth="enforce")
    yield rig, Bob(rig)
    rig.close()


def test_a_group_is_guarded_by_its_id_however_it_is_named(guarded: tuple[Rig, Bob]) -> None:
    rig, bob = guarded
    web, theirs = rig.client("ec2"), bob.client("ec2")
    id = made(web)
    arn = f"arn:aws:ec2:us-east-1:{ACCOUNT}:security-group/{id}"
    bob.may({"Action": "ec2:*"}, {"Effect": "Deny", "Action": "ec2:*", "Resource": arn})
    for named in ({"GroupId": id}, {"GroupName": "web"}):
        for call in (theirs.authorize_security_group_ingress, theirs.revoke_security_group_ingress):
            error = refused(call, **named, IpPermissions=at(1, "10.0.0.0/8"))
            assert (error.code, "explicit deny" in error.message) == ("UnauthorizedOperation", True), error.message
        assert refused(theirs.delete_security_group, **named).code == "UnauthorizedOperation"
    assert refused(theirs.create_tags, Resources=[id], Tags=[{"Key": "k", "Value": "v"}]).code == "UnauthorizedOperation"
    made(theirs, "own")  # another's


def test_conditions_see_tags_and_ids(guarded: tuple[Rig, Bob]) -> None:
    rig, bob = guarded
    web, theirs = rig.client("ec2"), bob.client("ec2")
    ids = {name: made(web, name, TagSpecifications=[{"ResourceType": "security-group", "Tags": [{"Key": "team", "Value": name}]}])
           for name in ("web", "db")}  # fmt: skip
    for condition in ({"StringEquals": {"ec2:ResourceTag/team": "web"}}, {"StringEquals": {"ec2:SecurityGroupID": ids["web"]}}):
        bob.may({"Action": "ec2:DeleteSecurityGroup", "Condition": condition})
        assert refused(theirs.delete_security_group, GroupId=ids["web"], DryRun=True).code == "DryRunOperation"
        assert refused(theirs.delete_security_group, GroupId=ids["db"], DryRun=True).code == "UnauthorizedOperation"
    bob.may({"Action": "ec2:CreateSecurityGroup", "Condition": {"StringEquals": {"aws:RequestTag/team": "web"}}})
    tags = [{"ResourceType": "security-group", "Tags": [{"Key": "team", "Value": "web"}]}]
    assert refused(theirs.create_security_group, GroupName="new", Description="d").code == "UnauthorizedOperation"
    made(theirs, "new", TagSpecifications=tags)


# ------------------------------------------------------------------ users of this machine


def allow(rig: Rig, **params: Any) -> Any:
    """``cachekeep allow``: what is answered, or the error."""
    principal = Principal("key", f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT)
    call = Call("cachekeep", "allow", {"name": "demo", **params}, principal, "us-east-1", "r", rig.clock.now(), None)
    try:
        return rig.run(rig.services.dispatch(call))
    except ApiError as error:
        return error


def test_a_user_is_a_member_of_the_group_that_is_let_in(rig: Rig, ec2: Any) -> None:
    cache, web = made(ec2, "cache"), made(ec2)
    rig.group(SecurityGroupIds=[cache])
    assert "No group is let in to demo at port 6379" in allow(rig, user=33).message
    ec2.authorize_security_group_ingress(GroupId=cache, IpPermissions=at(6379, groups=(web,)))
    assert "a member of web" in allow(rig, user=33)["because"]
    assert allow(rig)["groups"] == [{"id": web, "name": "web", "users": [33]}]
    assert refused(ec2.delete_security_group, GroupId=web).code == "DependencyViolation"
    assert "root" in allow(rig, user=0).message
    assert "not let in to demo" in allow(rig, user=33, group="cache").message
    assert "a member of none" in allow(rig, user=34, revoke=True).message
    ec2.authorize_security_group_ingress(GroupId=cache, IpPermissions=at(6379, groups=(cache,)))
    assert "--group" in allow(rig, user=34).message
    rig.group("other", SecurityGroupIds=[cache])
    said = allow(rig, user=34, group=web)["because"]
    assert "let in to demo, other" in said  # whoever asks for one cache hears what else that opens
    assert "no longer a member" in allow(rig, user=33, revoke=True)["because"]
    assert {g["name"]: g["users"] for g in allow(rig)["groups"]} == {"cache": [], "web": [34]}


def test_a_member_of_the_default_group(rig: Rig) -> None:
    rig.group()
    assert isinstance(allow(rig, user=33), ApiError)  # it lets in everybody, and no group by name
    rig = Rig(replace(SETTINGS, default_ingress="members"))
    rig.group()
    assert "a member of default" in allow(rig, user=33)["because"]
    assert allow(rig)["groups"] == [{"id": DEFAULT, "name": "default", "users": [33]}]
    rig.close()
