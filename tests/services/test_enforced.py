"""IAM end to end: users sign with keys of their own, and may do what their policies say, at every operation of every service."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import ACCOUNT, SETTINGS, Refused, Rig, refused

from cachekeep.security.access_keys import Issuer
from cachekeep.security.policy.keys import authorization
from cachekeep.services import SERVICES
from cachekeep.services.elasticache.guarded import _KEYS, _NAMES
from cachekeep.store import SqlStore
from cachekeep.wire.model import service_model

MANAGED = "arn:aws:iam::aws:policy/"
ARN = f"arn:aws:elasticache:us-east-1:{ACCOUNT}"
BOB = f"arn:aws:iam::{ACCOUNT}:user/Bob"
NODE = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro"}


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(auth="enforce")
    yield rig
    rig.close()


class Bob:
    """A user with a key, and a client of each service that signs with it."""

    def __init__(self, rig: Rig, name: str = "Bob", **more: Any) -> None:
        self.rig, self.name, self.iam = rig, name, rig.client("iam")
        self.iam.create_user(UserName=name, **more)
        self.key = self.iam.create_access_key(UserName=name)["AccessKey"]
        self.cache = self.client("elasticache")

    def client(self, service: str) -> Any:
        return self.rig.client_of(service, self.key["AccessKeyId"], self.key["SecretAccessKey"])

    def may(self, *statements: dict[str, Any], name: str = "p") -> None:
        """What a statement leaves out is: Allow, whatever ElastiCache does, everywhere."""
        rest = {"Effect": "Allow", "Action": "elasticache:*", "Resource": "*"}
        whole = [{k: v for k, v in rest.items() if f"Not{k}" not in s} | s for s in statements]
        text = json.dumps({"Version": "2012-10-17", "Statement": whole})
        self.iam.put_user_policy(UserName=self.name, PolicyName=name, PolicyDocument=text)


@pytest.fixture
def bob(rig: Rig) -> Bob:
    return Bob(rig)


def denied(call: Any, **params: Any) -> Refused:
    error = refused(call, **params)
    assert (error.code, error.status) == ("AccessDenied", 403)
    return error


# ------------------------------------------------------------------ every operation has its row


def test_every_operation_has_its_row() -> None:
    for service in SERVICES:
        if service.title:
            assert set(service.operations) <= set(authorization()[service.name]["actions"]), service.name


def test_every_type_of_resource_can_be_named() -> None:
    """Else a policy for that resource would never be asked for."""
    for service in ("elasticache",):
        rows = authorization()[service]
        types = {kind.lstrip("!") for row in rows["actions"].values() for kind in row["resources"]}
        assert types == set(_NAMES) == set(rows["resources"])


def test_every_parameter_that_names_a_resource_is_read() -> None:
    """Else what it names could be changed past a policy. NodeGroupId and SecurityGroupIds name no resource of ElastiCache."""
    read = {name for parameters in _NAMES.values() for name in parameters} | {"NodeGroupId", "SecurityGroupIds"}
    read |= {"SnapshottingClusterId"}  # of the group that is named beside it
    named = re.compile(r"\w*(Cluster|Group)(Ids?|Names?)|\w*Snapshot(Name|Identifier)|User(Group)?Ids?(To\w+)?|ResourceName")
    (service,) = (service for service in SERVICES if service.name == "elasticache")
    for operation, row in service.operations.items():
        shape = service_model("elasticache").operation(operation).input
        if row.mode != "refuses" and shape is not None:
            unread = {name for name in shape.members if named.fullmatch(name)} - read - {"ResourceName"}
            assert not unread, (operation, unread)


def test_every_condition_key_that_a_request_can_have_is_read() -> None:
    """The others are of serverless caches, which are not served."""
    absent = {"elasticache:DataStorageUnit"}
    absent |= {f"elasticache:M{x}imum{what}" for x in ("ax", "in") for what in ("DataStorage", "ECPUPerSecond")}
    computed = {f"elasticache:{name}" for name in ("AuthTokenEnabled", "ClusterModeEnabled", "UserAuthenticationMode")}
    assert set(authorization()["elasticache"]["keys"]) - absent == set(_KEYS) | computed


# ------------------------------------------------------------------ keys


def test_who_asks(rig: Rig, bob: Bob) -> None:
    found = bob.client("sts").get_caller_identity()  # needs no right
    assert (found["Account"], found["Arn"]) == (ACCOUNT, BOB)
    assert found["UserId"] == rig.client("iam").get_user(UserName="Bob")["User"]["UserId"]
    assert found["UserId"].startswith("AIDA")


def test_a_key_is_good_from_its_first_to_its_last_moment(rig: Rig, bob: Bob) -> None:
    bob.may({})
    assert bob.cache.describe_cache_clusters()["CacheClusters"] == []
    about = {"UserName": "Bob", "AccessKeyId": bob.key["AccessKeyId"]}
    bob.iam.update_access_key(Status="Inactive", **about)
    assert refused(bob.cache.describe_cache_clusters).code == "InvalidClientTokenId"
    assert refused(bob.client("sts").get_caller_identity).code == "InvalidClientTokenId"
    bob.iam.update_access_key(Status="Active", **about)
    bob.cache.describe_cache_clusters()
    bob.iam.delete_access_key(**about)
    assert refused(bob.cache.describe_cache_clusters).code == "InvalidClientTokenId"
    assert bob.iam.list_access_keys(UserName="Bob")["AccessKeyMetadata"] == []


def test_no_other_key_opens_anything(rig: Rig, bob: Bob) -> None:
    bob.may({})
    access_key, secret = bob.key["AccessKeyId"], bob.key["SecretAccessKey"]
    wrong = rig.client_of("elasticache", access_key, secret[:-1] + ("x" if secret[-1] != "x" else "y"))
    assert refused(wrong.describe_cache_clusters).code == "SignatureDoesNotMatch"
    for stranger in ("AKIAAAAAAAAAAAAAAAAA", access_key[:-1] + ("A" if access_key[-1] != "A" else "B"), "x"):
        assert refused(rig.client_of("elasticache", stranger, secret).describe_cache_clusters).code == "InvalidClientTokenId"
    elsewhere = Issuer(b"another installation", ACCOUNT).issue()
    assert refused(rig.client_of("elasticache", *elsewhere).describe_cache_clusters).code == "InvalidClientTokenId"
    never_given = SETTINGS.issuer.issue()  # by the same installation, in a transaction that came to nothing
    assert refused(rig.client_of("elasticache", *never_given).describe_cache_clusters).code == "InvalidClientTokenId"


def test_two_keys_and_no_more(bob: Bob) -> None:
    second = bob.iam.create_access_key(UserName="Bob")["AccessKey"]
    assert refused(bob.iam.create_access_key, UserName="Bob").code == "LimitExceeded"
    listed = bob.iam.list_access_keys(UserName="Bob")["AccessKeyMetadata"]
    assert {key["AccessKeyId"] for key in listed} == {bob.key["AccessKeyId"], second["AccessKeyId"]}
    assert refused(bob.iam.create_access_key).code == "ValidationError"


def test_no_secret_is_in_the_database(tmp_path: Any) -> None:
    file = tmp_path / "x.db"
    first = Rig()
    store = SqlStore(str(file), first.clock)
    rig = Rig(store=store, auth="enforce")
    bob = Bob(rig)
    rig.close()
    first.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert bob.key["AccessKeyId"].encode() in kept
    assert bob.key["SecretAccessKey"].encode() not in kept


def test_a_deleted_user_leaves_nothing(bob: Bob) -> None:
    assert refused(bob.iam.delete_user, UserName="Bob").code == "DeleteConflict"
    bob.iam.delete_access_key(UserName="Bob", AccessKeyId=bob.key["AccessKeyId"])
    bob.may({})
    assert refused(bob.iam.delete_user, UserName="Bob").code == "DeleteConflict"
    bob.iam.delete_user_policy(UserName="Bob", PolicyName="p")
    bob.iam.delete_user(UserName="Bob")
    assert bob.iam.list_users()["Users"] == []
    Bob(bob.rig)
    assert refused(bob.iam.create_user, UserName="bOB").code == "EntityAlreadyExists"


# ------------------------------------------------------------------ what is allowed


def test_nothing_is_allowed_until_a_policy_allows_it(rig: Rig, bob: Bob) -> None:
    for service in SERVICES:
        client = bob.client(service.name) if service.title else None
        for name in ("describe_replication_groups", "describe_vpcs", "list_users"):
            if hasattr(client, name):
                error = refused(getattr(client, name))
                assert error.status == 403
                assert error.code == ("UnauthorizedOperation" if service.name == "ec2" else "AccessDenied")
    assert denied(bob.cache.describe_replication_groups).message == (
        f"User: {BOB} is not authorized to perform: elasticache:DescribeReplicationGroups on resource: "
        f"{ARN}:replicationgroup:* because no identity-based policy allows the elasticache:DescribeReplicationGroups action"
    )


def test_by_name_and_for_all(rig: Rig, bob: Bob) -> None:
    rig.group("demo")
    rig.group("prod")
    bob.may({"Action": "elasticache:Describe*", "Resource": f"{ARN}:replicationgroup:demo*"})
    assert len(bob.cache.describe_replication_groups(ReplicationGroupId="DEMO")["ReplicationGroups"]) == 1
    there = denied(bob.cache.describe_replication_groups, ReplicationGroupId="prod")
    not_there = denied(bob.cache.describe_replication_groups, ReplicationGroupId="none")
    assert there.message.replace("prod", "none") == not_there.message
    denied(bob.cache.describe_replication_groups)
    denied(bob.cache.delete_replication_group, ReplicationGroupId="demo")


def test_an_explicit_deny_and_a_boundary_say_so(bob: Bob) -> None:
    bob.may({}, {"Effect": "Deny", "Action": "elasticache:Delete*"})
    message = denied(bob.cache.delete_replication_group, ReplicationGroupId="demo").message
    assert message.endswith("with an explicit deny in an identity-based policy")
    bob.iam.put_user_permissions_boundary(UserName="Bob", PermissionsBoundary=f"{MANAGED}IAMFullAccess")
    message = denied(bob.cache.describe_cache_clusters).message
    assert message.endswith("because no permissions boundary allows the elasticache:DescribeCacheClusters action")
    assert bob.iam.get_user(UserName="Bob")["User"]["PermissionsBoundary"]["PermissionsBoundaryArn"] == f"{MANAGED}IAMFullAccess"
    bob.iam.delete_user_permissions_boundary(UserName="Bob")
    bob.cache.describe_cache_clusters()


def test_all_resources_that_a_change_names_are_asked_for(rig: Rig, bob: Bob) -> None:
    bob.may({"Resource": f"{ARN}:cluster:*"})
    bob.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    message = denied(bob.cache.create_cache_cluster, CacheClusterId="two", CacheParameterGroupName="mine", **NODE).message
    assert f"on resource: {ARN}:parametergroup:mine" in message
    message = denied(bob.cache.create_cache_cluster, CacheClusterId="two", ReplicationGroupId="demo").message
    assert f"on resource: {ARN}:replicationgroup:demo" in message


def test_users_of_caches_that_a_change_names_are_asked_for(rig: Rig, bob: Bob) -> None:
    for id, name in (("nobody", "default"), ("theirs", "theirs"), ("bobs-own", "own")):
        user = {"UserId": id, "UserName": name, "Engine": "redis", "AccessString": "on ~* +@all"}
        rig.cache.create_user(**user, NoPasswordRequired=True)
    rig.cache.create_user_group(UserGroupId="bobs-team", Engine="redis", UserIds=["nobody"])
    bob.may({"Resource": [f"{ARN}:usergroup:bobs-*", f"{ARN}:user:bobs-*"]})
    assert f"{ARN}:user:theirs" in denied(bob.cache.modify_user_group, UserGroupId="bobs-team", UserIdsToAdd=["theirs"]).message
    assert f"{ARN}:user:nobody" in denied(bob.cache.modify_user_group, UserGroupId="bobs-team", UserIdsToRemove=["nobody"]).message
    bob.cache.modify_user_group(UserGroupId="bobs-team", UserIdsToAdd=["bobs-own"])


def test_how_a_user_of_a_cache_shows_who_it_is_is_a_condition_key(rig: Rig, bob: Bob) -> None:
    bob.may({}, {"Effect": "Deny", "Condition": {"StringNotEqualsIfExists": {"elasticache:UserAuthenticationMode": "password"}}})
    asked = {"UserName": "u", "Engine": "redis", "AccessString": "on ~* +@all"}
    denied(bob.cache.create_user, **asked, UserId="u", NoPasswordRequired=True)
    denied(bob.cache.create_user, **asked, UserId="u", AuthenticationMode={"Type": "no-password-required"})
    bob.cache.create_user(**asked, UserId="u", Passwords=["a-password-of-16-or-more"])
    bob.cache.create_user(
        **asked | {"UserName": "v"}, UserId="v", AuthenticationMode={"Type": "password", "Passwords": ["a-password-of-16-or-more"]}
    )
    denied(bob.cache.modify_user, UserId="u", NoPasswordRequired=True)


def test_condition_keys_of_requests(rig: Rig, bob: Bob) -> None:
    bob.may(
        {
            "Condition": {
                "StringEquals": {"elasticache:EngineType": "valkey"},
                "NumericLessThanEquals": {"elasticache:NumNodeGroups": 2},
            }
        }
    )
    asked = {"ReplicationGroupDescription": "d", **NODE}
    bob.cache.create_replication_group(ReplicationGroupId="a", NumNodeGroups=2, ReplicasPerNodeGroup=0, **asked)
    denied(bob.cache.create_replication_group, ReplicationGroupId="b", NumNodeGroups=3, ReplicasPerNodeGroup=0, **asked)
    denied(bob.cache.create_replication_group, ReplicationGroupId="b", NumNodeGroups=1, **asked | {"Engine": "redis"})
    bob.may({}, {"Effect": "Deny", "Condition": {"Bool": {"elasticache:MultiAZEnabled": False}}})
    denied(bob.cache.create_replication_group, ReplicationGroupId="b", **asked)


def test_tags_of_principals_requests_and_resources(rig: Rig) -> None:
    bob = Bob(rig, Tags=[{"Key": "Team", "Value": "red"}])
    team = {"aws:ResourceTag/team": "${aws:PrincipalTag/team}"}
    bob.may(
        {"Action": "elasticache:Create*", "Condition": {"StringEquals": {"aws:RequestTag/team": "${aws:PrincipalTag/team}"}}},
        {"NotAction": "elasticache:Create*", "Condition": {"StringEquals": team}},
    )
    asked = {"ReplicationGroupDescription": "d", "NumCacheClusters": 2, **NODE}
    for name, value in (("mine", "red"), ("other", "blue")):
        rig.cache.create_replication_group(ReplicationGroupId=name, Tags=[{"Key": "team", "Value": value}], **asked)
    rig.keep()
    bob.cache.describe_replication_groups(ReplicationGroupId="mine")
    bob.cache.describe_cache_clusters(CacheClusterId="mine-001")  # a member has its group's tags
    bob.cache.list_tags_for_resource(ResourceName=f"{ARN}:cluster:mine-001")
    denied(bob.cache.describe_replication_groups, ReplicationGroupId="other")
    denied(bob.cache.delete_cache_cluster, CacheClusterId="other-001")
    denied(bob.cache.list_tags_for_resource, ResourceName=f"{ARN}:cluster:other-001")
    denied(bob.cache.list_tags_for_resource, ResourceName=f"{ARN}:cluster:other-001".replace("us-east-1", ""))
    bob.cache.create_replication_group(ReplicationGroupId="new", Tags=[{"Key": "team", "Value": "red"}], **asked)
    denied(bob.cache.create_replication_group, ReplicationGroupId="newer", Tags=[{"Key": "team", "Value": "blue"}], **asked)


def test_where_from_and_who(bob: Bob) -> None:
    for block, met in (
        ({"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, False),
        ({"StringEquals": {"aws:username": "Bob", "aws:PrincipalAccount": ACCOUNT, "aws:RequestedRegion": "us-east-1"}}, True),
        ({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/B*"}}, True),
        ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, True),
        ({"DateLessThan": {"aws:EpochTime": "2020-01-01T00:00:00Z"}}, False),
        ({"Bool": {"aws:SecureTransport": True}}, False),
        ({"Bool": {"aws:MultiFactorAuthPresent": False}}, False),
    ):
        bob.may({"Condition": block})
        if met:
            bob.cache.describe_cache_clusters()
        else:
            denied(bob.cache.describe_cache_clusters)


def test_ready_made_policies(rig: Rig, bob: Bob) -> None:
    about = {"UserName": "Bob", "PolicyArn": f"{MANAGED}AmazonElastiCacheReadOnlyAccess"}
    bob.iam.attach_user_policy(**about)
    assert bob.iam.list_attached_user_policies(UserName="Bob")["AttachedPolicies"] == [
        {"PolicyName": "AmazonElastiCacheReadOnlyAccess", "PolicyArn": about["PolicyArn"]}
    ]
    bob.cache.describe_cache_clusters()
    denied(bob.cache.create_cache_cluster, CacheClusterId="one", **NODE)
    bob.iam.detach_user_policy(**about)
    denied(bob.cache.describe_cache_clusters)
    bob.iam.attach_user_policy(UserName="Bob", PolicyArn=f"{MANAGED}AmazonElastiCacheFullAccess")
    bob.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    bob.client("ec2").describe_subnets()
    denied(bob.client("iam").list_users)
    assert refused(bob.iam.attach_user_policy, UserName="Bob", PolicyArn=f"{MANAGED}PowerUserAccess").code == "NoSuchEntity"
    assert refused(bob.iam.detach_user_policy, **about).code == "NoSuchEntity"


def test_a_user_may_be_let_to_its_own_keys_alone(rig: Rig, bob: Bob) -> None:
    """IAM User Guide, "Allows IAM users to manage their own … access keys"."""
    bob.may({"Action": "iam:*AccessKey*", "Resource": "arn:aws:iam::*:user/${aws:username}"})
    iam = bob.client("iam")
    assert [key["AccessKeyId"] for key in iam.list_access_keys()["AccessKeyMetadata"]] == [bob.key["AccessKeyId"]]
    iam.create_access_key(UserName="Bob")
    rig.client("iam").create_user(UserName="eve")
    denied(iam.create_access_key, UserName="eve")
    denied(iam.put_user_policy, UserName="Bob", PolicyName="p", PolicyDocument="{}")


def test_nobody_is_reached_past_a_policy_by_another_spelling(rig: Rig, bob: Bob) -> None:
    bob.may({"Action": "iam:*"}, {"Effect": "Deny", "Action": "iam:*", "Resource": "arn:aws:iam::*:user/Admin"})
    rig.client("iam").create_user(UserName="Admin")
    iam = bob.client("iam")
    denied(iam.create_access_key, UserName="Admin")
    for name in ("admin", "ADMIN"):
        assert refused(iam.create_access_key, UserName=name).code == "NoSuchEntity"
    bob.may({}, {"Effect": "Deny", "Resource": [f"{ARN}:*:prod", f"{ARN}:cluster:prod-1"]})
    denied(bob.cache.delete_replication_group, ReplicationGroupId="PROD")
    asked = {"ReplicationGroupId": "new", "ReplicationGroupDescription": "d"}
    denied(bob.cache.create_replication_group, PrimaryClusterId="Prod-1", **asked)


def test_policies_are_kept_as_they_were_given(bob: Bob) -> None:
    text = '{"Version": "2012-10-17",\n "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
    bob.iam.put_user_policy(UserName="Bob", PolicyName="p", PolicyDocument=text)
    assert bob.iam.list_user_policies(UserName="Bob")["PolicyNames"] == ["p"]
    assert bob.iam.get_user_policy(UserName="Bob", PolicyName="p")["PolicyDocument"] == json.loads(text)
    for bad, words in (("{", "Syntax errors in policy."), (text.replace("*", "x", 1), "vendor")):
        error = refused(bob.iam.put_user_policy, UserName="Bob", PolicyName="p", PolicyDocument=bad)
        assert (error.code, words in error.message) == ("MalformedPolicyDocument", True)
    long = text.replace('"Resource"', f'"Sid": "{"a" * 2048}", "Resource"')
    assert refused(bob.iam.put_user_policy, UserName="Bob", PolicyName="q", PolicyDocument=long).code == "LimitExceeded"
    for call in (bob.iam.get_user_policy, bob.iam.delete_user_policy):
        assert refused(call, UserName="Bob", PolicyName="q").code == "NoSuchEntity"
        assert refused(call, UserName="eve", PolicyName="p").code == "NoSuchEntity"


def test_what_is_simulated_of_a_user_is_what_it_gets(rig: Rig, bob: Bob) -> None:
    """The same policies, the same answer: whatever is tried is then done."""
    bob.may(
        {"Resource": f"{ARN}:replicationgroup:bob-*"},
        {"Action": "elasticache:Describe*"},
        {"Effect": "Deny", "Resource": f"{ARN}:*:bob-2"},
    )
    bob.iam.put_user_permissions_boundary(UserName="Bob", PermissionsBoundary=f"{MANAGED}AmazonElastiCacheReadOnlyAccess")
    for boundary in (True, False):
        if not boundary:
            bob.iam.delete_user_permissions_boundary(UserName="Bob")
        for name in ("Bob-1", "bob-2", "demo"):
            for operation in ("DescribeReplicationGroups", "DeleteReplicationGroup"):
                arn = f"{ARN}:replicationgroup:{name.lower()}"
                asked = {"ActionNames": [f"elasticache:{operation}"], "ResourceArns": [arn]}
                (tried,) = bob.iam.simulate_principal_policy(PolicySourceArn=BOB, **asked)["EvaluationResults"]
                call = bob.cache.delete_replication_group if "Delete" in operation else bob.cache.describe_replication_groups
                error = refused(call, ReplicationGroupId=name)
                assert (error.code == "AccessDenied") is (tried["EvalDecision"] != "allowed"), (name, operation, error.message)
                assert ("explicit" in error.message) is (tried["EvalDecision"] == "explicitDeny")
    nobody = {"ActionNames": ["elasticache:DescribeEvents"]}
    assert refused(bob.iam.simulate_principal_policy, PolicySourceArn=BOB + "x", **nobody).code == "NoSuchEntity"
    assert refused(bob.iam.simulate_principal_policy, PolicySourceArn=f"{BOB[:25]}role/x", **nobody).code == "InvalidInput"
    denied(bob.client("iam").simulate_principal_policy, PolicySourceArn=BOB, **nobody)


# ------------------------------------------------------------------ nothing leaks


def test_who_is_refused_is_not_held() -> None:
    """A Describe of what is on its way is held; how long it takes would tell that there is something."""
    rig = Rig(replace(SETTINGS, hold_seconds=30.0), auth="enforce")
    bob = Bob(rig)
    rig.cache.create_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="d", **NODE)
    began = time.monotonic()
    denied(bob.cache.describe_replication_groups, ReplicationGroupId="demo")
    assert time.monotonic() - began < 15
    rig.close()


def test_the_command_line_is_the_roots(rig: Rig, bob: Bob) -> None:
    from cachekeep.wire.caller import Principal
    from cachekeep.wire.faults import ApiError
    from cachekeep.wire.gateway import Call

    bob.iam.attach_user_policy(UserName="Bob", PolicyArn=f"{MANAGED}AdministratorAccess")
    principal = Principal(bob.key["AccessKeyId"], "", ACCOUNT)
    call = Call("cachekeep", "status", {}, principal, "", "r", rig.clock.now(), None)
    with pytest.raises(ApiError) as caught:
        rig.run(asyncio.wait_for(rig.services.dispatch(call), 10))
    assert caught.value.code == "AccessDenied"
