"""Groups, managed policies, roles and temporary credentials, enforced; and attacked."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.services.rig import ACCOUNT, Rig, refused
from tests.services.test_enforced import ARN, MANAGED, NODE, Bob, denied

from cachekeep.security.access_keys import Issuer

IAM = f"arn:aws:iam::{ACCOUNT}"
READ_ONLY = f"{MANAGED}AmazonElastiCacheReadOnlyAccess"
FULL = f"{MANAGED}AmazonElastiCacheFullAccess"


def allow(action: Any, resource: Any = "*", **more: Any) -> str:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource} | more
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def trust(principal: Any, action: Any = "sts:AssumeRole", **more: Any) -> str:
    statement = {"Effect": "Allow", "Action": action, "Principal": principal} | more
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(auth="enforce")
    yield rig
    rig.close()


@pytest.fixture
def bob(rig: Rig) -> Bob:
    return Bob(rig)


@pytest.fixture
def iam(rig: Rig) -> Any:
    return rig.client("iam")


def session(rig: Rig, credentials: dict[str, Any], service: str = "elasticache", token: str | None = None) -> Any:
    """A client that signs with temporary credentials."""
    return rig.client_of(
        service, credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"] if token is None else token
    )


def role(iam: Any, name: str = "deploy", principal: Any = None, **more: Any) -> str:
    text = trust(principal or {"AWS": f"{IAM}:root"})
    return iam.create_role(RoleName=name, AssumeRolePolicyDocument=text, **more)["Role"]["Arn"]


# ------------------------------------------------------------------ groups and managed policies


def test_what_a_group_may_each_of_its_users_may(iam: Any, bob: Bob) -> None:
    iam.create_group(GroupName="Ops")
    iam.put_group_policy(GroupName="Ops", PolicyName="p", PolicyDocument=allow("elasticache:Describe*"))
    denied(bob.cache.describe_cache_clusters)
    iam.add_user_to_group(GroupName="Ops", UserName="Bob")
    bob.cache.describe_cache_clusters()
    denied(bob.cache.create_cache_cluster, CacheClusterId="one", **NODE)
    iam.attach_group_policy(GroupName="Ops", PolicyArn=FULL)
    bob.cache.create_cache_cluster(CacheClusterId="one", **NODE)
    assert [each["UserName"] for each in iam.get_group(GroupName="Ops")["Users"]] == ["Bob"]
    assert [each["GroupName"] for each in iam.list_groups_for_user(UserName="Bob")["Groups"]] == ["Ops"]
    assert refused(iam.delete_group, GroupName="Ops").code == "DeleteConflict"
    assert refused(iam.get_group, GroupName="ops").code == "NoSuchEntity"
    iam.update_group(GroupName="Ops", NewGroupName="Operators")
    bob.cache.describe_cache_clusters()
    iam.remove_user_from_group(GroupName="Operators", UserName="Bob")
    denied(bob.cache.describe_cache_clusters)


def test_the_default_version_counts_wherever_a_policy_is_attached(iam: Any, bob: Bob) -> None:
    arn = iam.create_policy(PolicyName="Own", PolicyDocument=allow("elasticache:Describe*"))["Policy"]["Arn"]
    iam.attach_user_policy(UserName="Bob", PolicyArn=arn)
    bob.cache.describe_cache_clusters()
    iam.create_policy_version(PolicyArn=arn, PolicyDocument=allow("iam:*"))
    bob.cache.describe_cache_clusters()
    iam.set_default_policy_version(PolicyArn=arn, VersionId="v2")
    denied(bob.cache.describe_cache_clusters)
    bob.client("iam").list_users()
    assert refused(iam.delete_policy_version, PolicyArn=arn, VersionId="v2").code == "DeleteConflict"
    assert refused(iam.delete_policy, PolicyArn=arn).code == "DeleteConflict"
    assert iam.get_policy(PolicyArn=arn)["Policy"]["AttachmentCount"] == 1
    assert iam.list_entities_for_policy(PolicyArn=arn)["PolicyUsers"][0]["UserName"] == "Bob"
    iam.delete_policy_version(PolicyArn=arn, VersionId="v1")
    for _ in range(4):
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=allow("*"))
    assert refused(iam.create_policy_version, PolicyArn=arn, PolicyDocument=allow("*")).code == "LimitExceeded"
    assert [each["VersionId"] for each in iam.list_policy_versions(PolicyArn=arn)["Versions"]] == ["v6", "v5", "v4", "v3", "v2"]
    assert refused(iam.create_policy, PolicyName="oWN", PolicyDocument=allow("*")).code == "EntityAlreadyExists"
    long = allow("*", Sid="a" * 6144)
    assert refused(iam.create_policy, PolicyName="long", PolicyDocument=long).code == "LimitExceeded"
    assert refused(iam.create_policy_version, PolicyArn=READ_ONLY, PolicyDocument=allow("*")).code == "AccessDenied"


def test_a_boundary_may_be_a_policy_of_ones_own(iam: Any, bob: Bob) -> None:
    bob.may({})
    arn = iam.create_policy(PolicyName="Most", PolicyDocument=allow("elasticache:Describe*"))["Policy"]["Arn"]
    iam.put_user_permissions_boundary(UserName="Bob", PermissionsBoundary=arn)
    bob.cache.describe_cache_clusters()
    assert "permissions boundary" in denied(bob.cache.delete_cache_cluster, CacheClusterId="x").message
    assert refused(iam.delete_policy, PolicyArn=arn).code == "DeleteConflict"


def test_tags_of_a_principal_count_at_once(iam: Any, bob: Bob) -> None:
    bob.may({"Condition": {"StringEquals": {"aws:PrincipalTag/team": "red"}}})
    denied(bob.cache.describe_cache_clusters)
    iam.tag_user(UserName="Bob", Tags=[{"Key": "Team", "Value": "red"}])
    bob.cache.describe_cache_clusters()
    iam.tag_user(UserName="Bob", Tags=[{"Key": "TEAM", "Value": "blue"}])
    assert iam.list_user_tags(UserName="Bob")["Tags"] == [{"Key": "TEAM", "Value": "blue"}]
    denied(bob.cache.describe_cache_clusters)
    iam.untag_user(UserName="Bob", TagKeys=["team"])
    assert iam.list_user_tags(UserName="Bob")["Tags"] == []


def test_a_user_with_another_name_keeps_keys_and_policies(iam: Any, bob: Bob) -> None:
    bob.may({})
    iam.update_user(UserName="Bob", NewUserName="Robert")
    assert bob.client("sts").get_caller_identity()["Arn"] == f"{IAM}:user/Robert"
    bob.cache.describe_cache_clusters()
    assert refused(iam.get_user, UserName="Bob").code == "NoSuchEntity"


# ------------------------------------------------------------------ roles


def test_a_role_is_assumed_by_whom_it_trusts(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam)
    iam.attach_role_policy(RoleName="deploy", PolicyArn=READ_ONLY)
    sts = bob.client("sts")
    about = {"RoleArn": arn, "RoleSessionName": "s1"}
    denied(sts.assume_role, **about)  # it trusts the account, so a policy of Bob's must allow it, too
    bob.may({"Action": "sts:AssumeRole", "Resource": arn})
    found = sts.assume_role(**about)
    assert found["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/deploy/s1"
    cache = session(rig, found["Credentials"])
    cache.describe_cache_clusters()
    message = denied(cache.delete_cache_cluster, CacheClusterId="x").message
    assert message.startswith(f"User: arn:aws:sts::{ACCOUNT}:assumed-role/deploy/s1 is not authorized")
    who = session(rig, found["Credentials"], "sts").get_caller_identity()
    assert who["UserId"] == found["AssumedRoleUser"]["AssumedRoleId"]
    iam.update_assume_role_policy(RoleName="deploy", PolicyDocument=trust({"AWS": f"{IAM}:user/Bob"}))
    bob.iam.delete_user_policy(UserName="Bob", PolicyName="p")
    sts.assume_role(**about)  # it names him himself
    iam.update_assume_role_policy(RoleName="deploy", PolicyDocument=trust({"Service": "ec2.amazonaws.com"}))
    bob.may({"Action": "*"})
    assert "resource-based policy" in denied(sts.assume_role, **about).message
    assert refused(rig.client("sts").assume_role, **about).code == "AccessDenied"  # root may not


def test_conditions_of_a_trust(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam)
    condition = {"StringEquals": {"sts:ExternalId": "42"}, "StringLike": {"sts:RoleSessionName": "bob-*"}}
    text = trust({"AWS": f"{IAM}:user/Bob"}, ["sts:AssumeRole", "sts:TagSession"], Condition=condition)
    iam.update_assume_role_policy(RoleName="deploy", PolicyDocument=text)
    sts = bob.client("sts")
    sts.assume_role(RoleArn=arn, RoleSessionName="bob-1", ExternalId="42")
    denied(sts.assume_role, RoleArn=arn, RoleSessionName="bob-1")
    denied(sts.assume_role, RoleArn=arn, RoleSessionName="bob-1", ExternalId="43")
    denied(sts.assume_role, RoleArn=arn, RoleSessionName="eve", ExternalId="42")
    iam.update_assume_role_policy(RoleName="deploy", PolicyDocument=trust({"AWS": f"{IAM}:user/Bob"}))
    message = denied(sts.assume_role, RoleArn=arn, RoleSessionName="s1", Tags=[{"Key": "team", "Value": "red"}]).message
    assert "sts:TagSession" in message


def test_a_session_does_no_more_than_its_own_policies_say(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, principal={"AWS": f"{IAM}:user/Bob"})
    iam.attach_role_policy(RoleName="deploy", PolicyArn=FULL)
    sts = bob.client("sts")
    about = {"RoleArn": arn, "RoleSessionName": "s1"}
    for more in ({"Policy": allow("elasticache:Describe*")}, {"PolicyArns": [{"arn": READ_ONLY}]}):
        cache = session(rig, sts.assume_role(**about, **more)["Credentials"])
        cache.describe_cache_clusters()
        assert "session policy" in denied(cache.create_cache_cluster, CacheClusterId="one", **NODE).message
    cache = session(rig, sts.assume_role(**about, Policy=allow("*"))["Credentials"])
    cache.create_cache_cluster(CacheClusterId="one", **NODE)
    denied(session(rig, sts.assume_role(**about, Policy=allow("*"))["Credentials"], "iam").list_users)
    assert refused(sts.assume_role, **about, Policy="{").code == "MalformedPolicyDocument"
    assert refused(sts.assume_role, **about, PolicyArns=[{"arn": "arn:aws:iam::aws:policy/None"}]).code == "MalformedPolicyDocument"


def test_tags_and_keys_of_a_session(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, Tags=[{"Key": "team", "Value": "blue"}, {"Key": "stage", "Value": "test"}])
    text = trust({"AWS": f"{IAM}:user/Bob"}, ["sts:AssumeRole", "sts:TagSession"])
    iam.update_assume_role_policy(RoleName="deploy", PolicyDocument=text)
    wanted = {
        "StringEquals": {"aws:PrincipalTag/team": "red", "aws:PrincipalTag/stage": "test", "aws:PrincipalType": "AssumedRole"},
        "ArnEquals": {"aws:PrincipalArn": arn},
        "StringLike": {"aws:userid": "AROA*:s1"},
        "Null": {"aws:username": "true", "aws:TokenIssueTime": "false"},
    }
    iam.put_role_policy(RoleName="deploy", PolicyName="p", PolicyDocument=allow("elasticache:*", Condition=wanted))
    sts = bob.client("sts")
    found = sts.assume_role(RoleArn=arn, RoleSessionName="s1", Tags=[{"Key": "Team", "Value": "red"}])
    denied(session(rig, sts.assume_role(RoleArn=arn, RoleSessionName="s1")["Credentials"]).describe_cache_clusters)
    assert found["PackedPolicySize"] > 0
    session(rig, found["Credentials"]).describe_cache_clusters()


def test_durations(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, principal={"AWS": f"{IAM}:root"}, MaxSessionDuration=7200)
    bob.may({"Action": "sts:*"})
    iam.put_role_policy(RoleName="deploy", PolicyName="p", PolicyDocument=allow("sts:*"))
    sts = bob.client("sts")
    about = {"RoleArn": arn, "RoleSessionName": "s1"}
    long = sts.assume_role(**about, DurationSeconds=7200)["Credentials"]
    left = long["Expiration"] - rig.clock.now()
    assert dt.timedelta(seconds=7100) < left <= dt.timedelta(seconds=7200)
    assert "MaxSessionDuration" in refused(sts.assume_role, **about, DurationSeconds=7201).message
    assert refused(sts.assume_role, **about, DurationSeconds=899).code == "ValidationError"
    chained = session(rig, long, "sts")
    assert "role chaining" in refused(chained.assume_role, **about, DurationSeconds=3601).message
    chained.assume_role(**about)


def test_a_session_token_of_a_user(rig: Rig, bob: Bob) -> None:
    bob.may({"Action": "*"})
    found = bob.client("sts").get_session_token()["Credentials"]
    session(rig, found).describe_cache_clusters()
    denied(session(rig, found, "iam").list_users)
    denied(session(rig, found, "sts").get_session_token)
    assert session(rig, found, "sts").get_caller_identity()["Arn"] == f"{IAM}:user/Bob"
    bob.iam.put_user_policy(UserName="Bob", PolicyName="p", PolicyDocument=allow("ec2:*"))
    denied(session(rig, found).describe_cache_clusters)


# ------------------------------------------------------------------ attacked


def test_no_other_token_opens_anything(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, principal={"AWS": f"{IAM}:user/Bob"})
    iam.attach_role_policy(RoleName="deploy", PolicyArn=FULL)
    sts = bob.client("sts")
    one, two = (sts.assume_role(RoleArn=arn, RoleSessionName=name)["Credentials"] for name in ("one", "two"))
    session(rig, one).describe_cache_clusters()
    whole = one["SessionToken"]
    flipped = whole[:-3] + ("A" if whole[-3] != "A" else "B") + whole[-2:]
    for token in (two["SessionToken"], flipped, whole[:-4], "x", "", whole + "="):
        assert refused(session(rig, one, token=token).describe_cache_clusters).code in ("InvalidClientTokenId",), token
    # a key of his own does not become another's by a token
    key = bob.key | {"SessionToken": whole}
    assert refused(session(rig, key).describe_cache_clusters).code == "InvalidClientTokenId"
    # neither does the id of a session that was never given
    elsewhere = Issuer(b"another installation", ACCOUNT)
    opened = rig.settings.issuer.session_of(one["AccessKeyId"], whole)
    assert opened is not None
    forged = elsewhere.issue_session(opened)
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    assert refused(session(rig, dict(zip(names, forged, strict=True))).describe_cache_clusters).code == "InvalidClientTokenId"
    assert opened.session_name.encode() not in whole.encode()


def test_who_is_gone_is_gone_with_all_sessions(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, principal={"AWS": f"{IAM}:user/Bob"})
    iam.attach_role_policy(RoleName="deploy", PolicyArn=FULL)
    found = bob.client("sts").assume_role(RoleArn=arn, RoleSessionName="s1")["Credentials"]
    iam.detach_role_policy(RoleName="deploy", PolicyArn=FULL)
    denied(session(rig, found).describe_cache_clusters)
    iam.delete_role(RoleName="deploy")
    assert refused(session(rig, found).describe_cache_clusters).code == "InvalidClientTokenId"
    role(iam, principal={"AWS": f"{IAM}:user/Bob"})
    iam.attach_role_policy(RoleName="deploy", PolicyArn=FULL)
    assert refused(session(rig, found).describe_cache_clusters).code == "InvalidClientTokenId"  # of the role before


def test_a_trust_does_not_go_over_to_the_next_of_that_name(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, principal={"AWS": f"{IAM}:user/Bob"})
    about = {"RoleArn": arn, "RoleSessionName": "s1"}
    bob.client("sts").assume_role(**about)
    iam.delete_access_key(UserName="Bob", AccessKeyId=bob.key["AccessKeyId"])
    iam.delete_user(UserName="Bob")
    rig.clock.passed += dt.timedelta(seconds=2)
    denied(Bob(rig).client("sts").assume_role, **about)
    for nobody in (f"{IAM}:user/None", f"{IAM}:role/None", "arn:aws:iam::999999999999:user/Bob"):
        error = refused(iam.create_role, RoleName="x", AssumeRolePolicyDocument=trust({"AWS": nobody}))
        assert (error.code, "Invalid principal" in error.message) == ("MalformedPolicyDocument", True)


def test_an_expired_session_opens_nothing(rig: Rig) -> None:
    from cachekeep.wire.caller import Principal
    from cachekeep.wire.faults import ApiError
    from cachekeep.wire.gateway import Call

    bob = Bob(rig)
    bob.may({"Action": "*"})
    found = bob.client("sts").get_session_token(DurationSeconds=900)["Credentials"]
    principal = Principal(found["AccessKeyId"], "", ACCOUNT, found["SessionToken"])
    call = Call("elasticache", "DescribeCacheClusters", {}, principal, "us-east-1", "r", rig.clock.now(), None)
    rig.run(rig.services.dispatch(call))
    late = dataclasses.replace(call, received_at=found["Expiration"])
    with pytest.raises(ApiError) as caught:
        rig.run(rig.services.dispatch(late))
    assert (caught.value.code, caught.value.status) == ("ExpiredToken", 403)


def test_spelling_does_not_lead_to_another_role(rig: Rig, iam: Any, bob: Bob) -> None:
    arn = role(iam, "Deploy", {"AWS": f"{IAM}:user/Bob"})
    sts = bob.client("sts")
    bob.may({"Action": "sts:*"}, {"Effect": "Deny", "Action": "sts:*", "Resource": f"{IAM}:role/Deploy"})
    for other in (
        arn,
        arn.replace("Deploy", "deploy"),
        arn.replace("Deploy", "x/Deploy"),
        arn.replace("arn:aws", "arn:AWS"),
        arn.replace("Deploy", "Depl%6Fy"),
        arn.replace(ACCOUNT, "111111111111"),
        arn.replace(":role/", ":user/"),
        arn.upper(),
        f"{IAM}:role/*",
        f"{IAM}:role/",
        "*" * 20,
    ):
        assert refused(sts.assume_role, RoleArn=other, RoleSessionName="s1").code in ("AccessDenied", "ValidationError"), other


def test_a_sessions_name_makes_nobody_of_that_name(rig: Rig, iam: Any, bob: Bob) -> None:
    """``iam:*AccessKey*`` at ``user/${aws:username}`` means nobody for a session that is named as a user is."""
    arn = role(iam, principal={"AWS": f"{IAM}:user/Bob"})
    text = allow("iam:*", f"{IAM}:user/" + "${aws:username}")
    iam.put_role_policy(RoleName="deploy", PolicyName="p", PolicyDocument=text)
    found = bob.client("sts").assume_role(RoleArn=arn, RoleSessionName="Bob")["Credentials"]
    own = session(rig, found, "iam")
    denied(own.create_access_key, UserName="Bob")
    denied(own.create_access_key)
    assert refused(own.get_user).status >= 400


def test_a_thousand_policies_are_asked(rig: Rig, iam: Any, bob: Bob) -> None:
    """Ten groups with ten managed policies each, and the one that allows is the last."""
    for number in range(100):
        iam.create_policy(PolicyName=f"p{number:02}", PolicyDocument=allow("elasticache:Describe*", f"{ARN}:cluster:c{number}"))
    for group in range(10):
        iam.create_group(GroupName=f"g{group}")
        iam.add_user_to_group(GroupName=f"g{group}", UserName="Bob")
        for number in range(10):
            iam.attach_group_policy(GroupName=f"g{group}", PolicyArn=f"{IAM}:policy/p{group * 10 + number:02}")
    assert refused(bob.cache.describe_cache_clusters, CacheClusterId="c99").code == "CacheClusterNotFound"
    denied(bob.cache.describe_cache_clusters, CacheClusterId="c100")
    iam.create_group(GroupName="g10")
    assert refused(iam.add_user_to_group, GroupName="g10", UserName="Bob").code == "LimitExceeded"


def test_what_is_simulated_of_a_role_and_a_group(iam: Any) -> None:
    arn = role(iam)
    iam.attach_role_policy(RoleName="deploy", PolicyArn=READ_ONLY)
    iam.create_group(GroupName="ops")
    iam.put_group_policy(GroupName="ops", PolicyName="p", PolicyDocument=allow("elasticache:DeleteCacheCluster"))
    for source, expected in ((arn, ["allowed", "implicitDeny"]), (f"{IAM}:group/ops", ["implicitDeny", "allowed"])):
        asked = {"ActionNames": ["elasticache:DescribeCacheClusters", "elasticache:DeleteCacheCluster"]}
        found = iam.simulate_principal_policy(PolicySourceArn=source, **asked)["EvaluationResults"]
        assert [each["EvalDecision"] for each in found] == expected
