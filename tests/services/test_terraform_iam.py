"""What Terraform's provider calls for IAM's resources, in its order
[hashicorp/terraform-provider-aws, internal/service/iam]."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.services.rig import ACCOUNT, Rig, refused
from tests.services.test_roles import allow, trust

IAM = f"arn:aws:iam::{ACCOUNT}"


@pytest.fixture
def iam(rig: Rig) -> Any:
    return rig.client("iam")


def test_aws_iam_user_and_access_key(iam: Any) -> None:
    iam.create_user(UserName="ci", Path="/", Tags=[{"Key": "a", "Value": "1"}])
    found = iam.get_user(UserName="ci")["User"]
    assert (found["Arn"], found["Path"], found["Tags"]) == (f"{IAM}:user/ci", "/", [{"Key": "a", "Value": "1"}])
    key = iam.create_access_key(UserName="ci")["AccessKey"]
    assert iam.list_access_keys(UserName="ci")["AccessKeyMetadata"][0]["Status"] == "Active"
    assert iam.get_access_key_last_used(AccessKeyId=key["AccessKeyId"])["UserName"] == "ci"
    iam.put_user_policy(UserName="ci", PolicyName="p", PolicyDocument=allow("elasticache:*"))
    assert iam.get_user_policy(UserName="ci", PolicyName="p")["PolicyDocument"] == json.loads(allow("elasticache:*"))
    iam.update_user(UserName="ci", NewUserName="cd", NewPath="/")
    iam.untag_user(UserName="cd", TagKeys=["a"])
    iam.tag_user(UserName="cd", Tags=[{"Key": "b", "Value": "2"}])
    iam.delete_user_policy(UserName="cd", PolicyName="p")
    iam.delete_access_key(UserName="cd", AccessKeyId=key["AccessKeyId"])
    assert iam.list_groups_for_user(UserName="cd")["Groups"] == []
    iam.delete_user(UserName="cd")
    assert refused(iam.get_user, UserName="cd").code == "NoSuchEntity"


def test_aws_iam_group_and_membership(iam: Any) -> None:
    assert iam.create_group(GroupName="ops", Path="/")["Group"]["Arn"] == f"{IAM}:group/ops"
    iam.create_user(UserName="ci", Path="/")
    iam.add_user_to_group(GroupName="ops", UserName="ci")
    assert [u["UserName"] for page in iam.get_paginator("get_group").paginate(GroupName="ops") for u in page["Users"]] == ["ci"]
    iam.update_group(GroupName="ops", NewGroupName="operators", NewPath="/")
    iam.remove_user_from_group(GroupName="operators", UserName="ci")
    iam.delete_group(GroupName="operators")
    assert refused(iam.get_group, GroupName="operators").code == "NoSuchEntity"


def test_aws_iam_policy_and_attachment(iam: Any) -> None:
    arn = iam.create_policy(PolicyName="p", Path="/", Description="d", PolicyDocument=allow("elasticache:*"))["Policy"]["Arn"]
    found = iam.get_policy(PolicyArn=arn)["Policy"]
    assert (found["DefaultVersionId"], found["Description"]) == ("v1", "d")
    version = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]
    assert version["Document"] == json.loads(allow("elasticache:*"))
    iam.create_role(
        RoleName="r", Path="/", AssumeRolePolicyDocument=trust({"Service": "ec2.amazonaws.com"}), MaxSessionDuration=3600
    )
    iam.attach_role_policy(RoleName="r", PolicyArn=arn)
    assert [p["PolicyArn"] for p in iam.list_attached_role_policies(RoleName="r")["AttachedPolicies"]] == [arn]
    assert len(iam.list_policy_versions(PolicyArn=arn)["Versions"]) == 1
    iam.create_policy_version(PolicyArn=arn, PolicyDocument=allow("iam:*"), SetAsDefault=True)
    iam.detach_role_policy(RoleName="r", PolicyArn=arn)
    for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
        if not version["IsDefaultVersion"]:
            iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
    iam.delete_policy(PolicyArn=arn)
    assert refused(iam.get_policy, PolicyArn=arn).code == "NoSuchEntity"


def test_aws_iam_role(iam: Any) -> None:
    text = trust({"Service": "ec2.amazonaws.com"})
    made = iam.create_role(RoleName="r", Path="/", AssumeRolePolicyDocument=text, Description="d", MaxSessionDuration=7200, Tags=[])
    found = iam.get_role(RoleName="r")["Role"]
    assert found == made["Role"]
    assert (found["AssumeRolePolicyDocument"], found["MaxSessionDuration"]) == (json.loads(text), 7200)
    iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=allow("elasticache:*"))
    assert iam.list_role_policies(RoleName="r")["PolicyNames"] == ["p"]
    assert iam.get_role_policy(RoleName="r", PolicyName="p")["PolicyDocument"] == json.loads(allow("elasticache:*"))
    iam.update_assume_role_policy(RoleName="r", PolicyDocument=trust({"AWS": f"{IAM}:root"}))
    iam.update_role_description(RoleName="r", Description="other")
    iam.update_role(RoleName="r", MaxSessionDuration=3600)
    iam.put_role_permissions_boundary(RoleName="r", PermissionsBoundary="arn:aws:iam::aws:policy/IAMFullAccess")
    iam.delete_role_permissions_boundary(RoleName="r")
    assert iam.list_instance_profiles_for_role(RoleName="r")["InstanceProfiles"] == []
    iam.delete_role_policy(RoleName="r", PolicyName="p")
    assert iam.list_attached_role_policies(RoleName="r")["AttachedPolicies"] == []
    iam.delete_role(RoleName="r")
    assert refused(iam.get_role, RoleName="r").code == "NoSuchEntity"
