"""The policy language: AWS's own examples, each with its page of the IAM or ElastiCache User Guide, and the corners of rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from cachekeep.security.policy.evaluate import AccessRequest, Attached, Subject, Verdict, evaluate, keys_of
from cachekeep.security.policy.parse import MalformedPolicy, parse
from cachekeep.security.policy.tree import Kind

ACCOUNT = "123456789012"
CLUSTER = f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:my-1"
USER = Subject(f"arn:aws:iam::{ACCOUNT}:user/bob", ACCOUNT)
SESSION = Subject(f"arn:aws:sts::{ACCOUNT}:assumed-role/ops/bob", ACCOUNT, f"arn:aws:iam::{ACCOUNT}:role/ops")


def policy(*statements: dict[str, Any], kind: Kind = "identity", version: str = "2012-10-17") -> Attached:
    """What a statement leaves out is: Allow, every action, every resource."""
    whole = [{"Effect": "Allow"} | _rest(s, "Action") | _rest(s, "Resource") | s for s in statements]
    return Attached(kind, kind, parse(json.dumps({"Version": version, "Statement": whole}), kind))


def _rest(statement: dict[str, Any], name: str) -> dict[str, Any]:
    return {} if f"Not{name}" in statement else {name: "*"}


def ask(
    *policies: Attached,
    action: str = "elasticache:DescribeCacheClusters",
    resource: str = CLUSTER,
    subject: Subject = USER,
    **values: str | Sequence[str],
) -> Verdict:
    """What is decided. ``aws__username="bob"`` is a value of the request."""
    named = {name.replace("__", ":").lower(): [v] if isinstance(v, str) else v for name, v in values.items()}
    return evaluate(AccessRequest(action, resource, subject, named), policies)


def allowed(*policies: Attached, **request: Any) -> bool:
    return ask(*policies, **request).allowed


def when(block: dict[str, Any], **values: Any) -> bool:
    """Whether a condition is met."""
    return allowed(policy({"Condition": block}), **values)


# ------------------------------------------------------------------ the kinds of policy


@pytest.mark.parametrize(
    ("policies", "decided"),
    [
        # Policy evaluation logic: "by default, all requests are implicitly denied"; an explicit deny overrides any allow.
        ([], (False, "identity", False)),
        ([policy({})], (True, "identity", False)),
        ([policy({}, {"Effect": "Deny"})], (False, "identity", True)),
        ([policy({"Effect": "Deny"}), policy({})], (False, "identity", True)),
        # Permissions boundaries for IAM entities: the intersection; a boundary allows nothing by itself.
        ([policy({}, kind="boundary")], (False, "identity", False)),
        ([policy({}), policy({"Action": "s3:*"}, kind="boundary")], (False, "boundary", False)),
        ([policy({}), policy({"Effect": "Deny"}, kind="boundary")], (False, "boundary", True)),
        ([policy({}), policy({}, kind="boundary")], (True, "identity", False)),
        # Session policies: the intersection again.
        ([policy({}, kind="session")], (False, "identity", False)),
        ([policy({}), policy({"Action": "s3:*"}, kind="session")], (False, "session", False)),
        ([policy({}), policy({"Effect": "Deny"}, kind="session")], (False, "session", True)),
        ([policy({}), policy({}, kind="boundary"), policy({"Action": "s3:*"}, kind="session")], (False, "session", False)),
        # A resource lets its own account's users in, past a boundary; denies whoever it names.
        ([policy({"Principal": {"AWS": USER.arn}}, kind="resource")], (True, "resource", False)),
        (
            [policy({"Principal": {"AWS": USER.arn}}, kind="resource"), policy({"Action": "s3:*"}, kind="boundary")],
            (True, "resource", False),
        ),
        ([policy({"Principal": {"AWS": ACCOUNT}}, kind="resource")], (False, "identity", False)),
        ([policy({}), policy({"Principal": {"AWS": ACCOUNT}}, kind="resource")], (True, "identity", False)),
        ([policy({}), policy({"Principal": "*", "Effect": "Deny"}, kind="resource")], (False, "resource", True)),
        ([policy({}), policy({"NotPrincipal": {"AWS": USER.arn}, "Effect": "Deny"}, kind="resource")], (True, "identity", False)),
        ([policy({"Principal": {"Service": "ec2.amazonaws.com"}}, kind="resource")], (False, "identity", False)),
    ],
)
def test_who_decides(policies: list[Attached], decided: tuple[bool, Kind, bool]) -> None:
    verdict = ask(*policies)
    assert (verdict.allowed, verdict.by, verdict.explicit) == decided


def test_a_resource_that_names_a_role_stays_under_the_ceilings_of_its_session() -> None:
    """Permissions boundaries for IAM entities, "Resource-based policies for IAM roles" and "… for IAM role sessions"."""
    ceiling = policy({"Action": "s3:*"}, kind="boundary")
    for name, decided in ((SESSION.role_arn, False), (SESSION.arn, True)):
        named = policy({"Principal": {"AWS": name}}, kind="resource")
        assert allowed(named, subject=SESSION)
        assert allowed(named, ceiling, subject=SESSION) is decided


# ------------------------------------------------------------------ actions and resources


@pytest.mark.parametrize(
    ("statement", "action", "met"),
    [
        # IAM JSON policy elements: Action: prefix and name have no case; wildcards anywhere in the name.
        ({"Action": "elasticache:describecacheclusters"}, "elasticache:DescribeCacheClusters", True),
        ({"Action": "ElastiCache:Describe*"}, "elasticache:DescribeCacheClusters", True),
        ({"Action": "elasticache:De?cribe*"}, "elasticache:DescribeCacheClusters", True),
        ({"Action": "elasticache:*Cluster"}, "elasticache:DescribeCacheClusters", False),
        ({"Action": ["s3:*", "elasticache:*"]}, "elasticache:DeleteCacheCluster", True),
        # IAM JSON policy elements: NotAction.
        ({"NotAction": "iam:*"}, "elasticache:DeleteCacheCluster", True),
        ({"NotAction": ["iam:*", "elasticache:Delete*"]}, "elasticache:DeleteCacheCluster", False),
    ],
)
def test_actions(statement: dict[str, Any], action: str, met: bool) -> None:
    assert allowed(policy(statement), action=action) is met


@pytest.mark.parametrize(
    ("statement", "resource", "met"),
    [
        # Resource-level permissions, ElastiCache User Guide: cluster, parameter group and subnet group by ARN and wildcard.
        ({"Resource": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:*"}, CLUSTER, True),
        ({"Resource": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:my-?"}, CLUSTER, True),
        ({"Resource": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:replicationgroup:*"}, CLUSTER, False),
        ({"Resource": f"arn:aws:elasticache:eu-*:{ACCOUNT}:*"}, CLUSTER, False),
        ({"Resource": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:MY-1"}, CLUSTER, False),
        # IAM JSON policy elements: Resource: a * at the end reaches over colons; what is missing of an ARN is *.
        ({"Resource": "arn:aws:elasticache:*"}, CLUSTER, True),
        ({"Resource": "arn:aws:elasticache"}, CLUSTER, True),
        ({"Resource": "arn:aws:elasti"}, CLUSTER, False),
        ({"Resource": "*"}, "*", True),
        ({"Resource": "arn:aws:elasticache:*"}, "*", False),
        # IAM JSON policy elements: NotResource.
        ({"NotResource": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:*"}, CLUSTER, False),
        ({"NotResource": f"arn:aws:elasticache:us-east-1:{ACCOUNT}:replicationgroup:*"}, CLUSTER, True),
    ],
)
def test_resources(statement: dict[str, Any], resource: str, met: bool) -> None:
    assert allowed(policy(statement), resource=resource) is met


def test_variables() -> None:
    """Variables and tags: the user's name in an ARN; a default; none in policies of 2008; what they bring along is literal."""
    own = {"Resource": "arn:aws:elasticache:*:*:cluster:${aws:username}-1"}
    assert allowed(policy(own), aws__username="my")
    assert not allowed(policy(own), aws__username="your")
    assert not allowed(policy(own))
    assert not allowed(policy(own), aws__username="*")
    assert not allowed(policy(own, version="2008-10-17"), aws__username="my")
    default = {"Resource": "arn:aws:elasticache:*:*:cluster:${aws:PrincipalTag/team, 'my'}-1"}
    assert allowed(policy(default))
    assert not allowed(policy(default), **{"aws__PrincipalTag/team": "your"})
    star = {"Resource": "arn:aws:elasticache:*:*:cluster:${*}"}
    assert allowed(policy(star), resource=CLUSTER.replace("my-1", "*"))
    assert not allowed(policy(star))


def test_a_pattern_of_many_wildcards_is_soon_answered() -> None:
    wanted = policy({"Resource": "arn:aws:s3:::" + "*a?" * 1500 + "b"})
    assert not allowed(wanted, resource="arn:aws:s3:::" + "a" * 2000)


# ------------------------------------------------------------------ conditions

PUBLISHED: dict[str, tuple[str, str, Any, str, str]] = {
    # Operator, key, the policy's value; a value of a request that meets it, one that does not.
    # ElastiCache User Guide, "Using condition keys": only valkey; only some types; at most so many shards; only encrypted ones.
    "engine": ("StringEquals", "elasticache:EngineType", "valkey", "valkey", "redis"),
    "type": ("StringLike", "elasticache:CacheNodeType", ["cache.t3.*", "cache.m5.large"], "cache.t3.micro", "cache.m5.xlarge"),
    "shards": ("NumericLessThanEquals", "elasticache:NumNodeGroups", "20", "20", "21"),
    "encrypted": ("Bool", "elasticache:TransitEncryptionEnabled", "true", "true", "false"),
    # "Condition operators": each with the page's own example.
    "job": ("StringEquals", "aws:PrincipalTag/job-category", "iamuser-admin", "iamuser-admin", "iamuser-Admin"),
    "any case": ("StringEqualsIgnoreCase", "aws:username", "JohnDoe", "johndoe", "johndo"),
    "number": ("NumericLessThanEquals", "s3:max-keys", "10", "9.5", "ten"),
    "later": ("DateGreaterThan", "aws:TokenIssueTime", "2020-01-01T00:00:01Z", "2020-01-01T00:00:02Z", "2020-01-01T01:00:01+01:00"),
    "earlier": ("DateLessThan", "aws:EpochTime", "2020-01-01", "1577836799", "1577836800"),
    "truth": ("Bool", "aws:SecureTransport", "false", "False", "true"),
    "IPv4": ("IpAddress", "aws:SourceIp", "203.0.113.0/24", "203.0.113.7", "203.0.114.7"),
    "IPv6": ("IpAddress", "aws:SourceIp", ["203.0.113.0/24", "2001:DB8:1234:5678::/64"], "2001:db8:1234:5678::9", "2001:db8::9"),
    "ARN": (
        "ArnLike",
        "aws:SourceArn",
        "arn:aws:sns:*:123456789012:topic-?",
        "arn:aws:sns:eu-west-1:123456789012:topic-1",
        "arn:aws:sns:eu-west-1:123456789012:a:topic-1",
    ),
    "bytes": ("BinaryEquals", "aws:PrincipalTag/key", "QmluYXJ5VmFsdWVJbkJhc2U2NA==", "QmluYXJ5VmFsdWVJbkJhc2U2NA==", "QmluYXJ5"),
}
INVERTED = {name: name.replace("String", "StringNot") for name in ("StringEquals", "StringEqualsIgnoreCase", "StringLike")}
INVERTED |= {"IpAddress": "NotIpAddress", "ArnLike": "ArnNotLike"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_conditions(name: str) -> None:
    """Met by the one value, not by the other, nor without any; with IfExists also without; inverted, the other way round."""
    operator, key, wanted, one, other = PUBLISHED[name]
    meets, fails = {key: one}, {key: other}
    block = {key: wanted}
    assert when({operator: block}, **meets)
    assert not when({operator: block}, **fails)
    assert not when({operator: block})
    assert when({f"{operator}IfExists": block})
    assert not when({f"{operator}IfExists": block}, **fails)
    if operator in INVERTED:
        assert not when({INVERTED[operator]: block}, **meets)
        assert when({INVERTED[operator]: block}, **fails)
        assert when({INVERTED[operator]: block})


@pytest.mark.parametrize(
    ("operator", "value", "met"),
    [
        ("NumericEquals", "5", True),
        ("NumericEquals", "5.00", True),
        ("NumericEquals", "6", False),
        ("NumericNotEquals", "6", True),
        ("NumericLessThan", "5", False),
        ("NumericLessThan", "6", True),
        ("NumericGreaterThan", "4", True),
        ("NumericGreaterThan", "5", False),
        ("NumericGreaterThanEquals", "5", True),
        ("NumericGreaterThanEquals", "6", False),
    ],
)
def test_numbers(operator: str, value: str, met: bool) -> None:
    assert when({operator: {"elasticache:NumNodeGroups": value}}, elasticache__NumNodeGroups="5") is met


@pytest.mark.parametrize(
    ("operator", "keys", "met"),
    [
        # Multivalued context keys: the tables of "Set operators for multivalued context keys".
        ("ForAllValues:StringEquals", ["environment", "webserver"], True),
        ("ForAllValues:StringEquals", ["environment", "costcenter"], False),
        ("ForAllValues:StringEquals", [], True),
        ("ForAnyValue:StringEquals", ["environment", "costcenter"], True),
        ("ForAnyValue:StringEquals", ["costcenter"], False),
        ("ForAnyValue:StringEquals", [], False),
        ("ForAllValues:StringNotEquals", ["costcenter"], True),
        ("ForAllValues:StringNotEquals", ["costcenter", "webserver"], False),
        ("ForAnyValue:StringNotEquals", ["costcenter", "webserver"], True),
        ("ForAnyValue:StringNotEquals", ["webserver"], False),
        ("ForAnyValue:StringNotEquals", [], False),
        # Without one of them a key of many values is never met.
        ("StringEquals", ["webserver"], False),
        ("StringNotEquals", ["costcenter"], False),
    ],
)
def test_many_values(operator: str, keys: list[str], met: bool) -> None:
    assert when({operator: {"aws:TagKeys": ["environment", "webserver"]}}, aws__TagKeys=keys) is met


def test_null() -> None:
    """Condition operator to check existence of condition keys."""
    for present, values in ((True, {"aws__TokenIssueTime": "2020-01-01"}), (False, {}), (False, {"aws__TokenIssueTime": []})):
        assert when({"Null": {"aws:TokenIssueTime": "true"}}, **values) is not present
        assert when({"Null": {"aws:TokenIssueTime": False}}, **values) is present


def test_all_keys_and_operators_must_hold_and_one_value_each() -> None:
    """Conditions with multiple context keys or values."""
    block = {"StringEquals": {"aws:username": ["bob", "eve"], "aws:userid": "A"}, "Bool": {"aws:SecureTransport": True}}
    values = {"aws__UserName": "eve", "aws__userid": "A", "aws__SecureTransport": "TRUE"}
    assert when(block, **values)
    for name in values:
        assert not when(block, **values | {name: "other"})


def test_the_keys_that_policies_ask_for() -> None:
    asking = policy(
        {"Resource": "arn:aws:s3:::${aws:username}", "Condition": {"ArnLike": {"aws:PrincipalArn": "arn:*:*:*:*:${aws:userid}"}}},
        {"Condition": {"StringLike": {"elasticache:EngineType": "${aws:PrincipalTag/Engine}"}}},
    )
    keys = {"aws:username", "aws:principalarn", "aws:userid", "elasticache:enginetype", "aws:principaltag/engine"}
    assert keys_of([asking]) == keys


# ------------------------------------------------------------------ what is refused

OK = {"Effect": "Allow", "Action": "*", "Resource": "*"}
VENDOR = "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc."


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "Syntax errors in policy."),
        ("[]", "Syntax errors in policy."),
        ("{}", "Syntax errors in policy."),
        ('{"Statement": NaN}', "Syntax errors in policy."),
        ('{"Statement": {"Effect": "Deny", "Effect": "Allow", "Action": "*", "Resource": "*"}}', "Syntax errors in policy."),
        ({"Statement": []}, "Syntax errors in policy."),
        ({"Statement": OK, "Version": "2013-10-17"}, "Syntax errors in policy."),
        ({"Statement": OK, "Other": 1}, "Syntax errors in policy."),
        (OK | {"Other": 1}, "Syntax errors in policy."),
        (OK | {"Effect": "allow"}, "Syntax errors in policy."),
        (OK | {"NotAction": "*"}, "Syntax errors in policy."),
        (OK | {"Action": 1}, "Syntax errors in policy."),
        (OK | {"Sid": "a b"}, "Statement IDs (SID) must be alpha-numeric."),
        ({"Statement": [OK | {"Sid": "a"}, OK | {"Sid": "a"}]}, "Statement IDs (SID) in a single policy must be unique."),
        ({"Effect": "Allow", "Resource": "*"}, "Policy statement must contain actions."),
        ({"Effect": "Allow", "Action": "*"}, "Policy statement must contain resources."),
        (OK | {"Action": []}, "Policy statement must contain actions."),
        (OK | {"Action": "Describe*"}, VENDOR),
        (OK | {"Action": "elasti*:Describe"}, VENDOR),
        (OK | {"Resource": "cluster"}, 'Resource cluster must be in ARN format or "*".'),
        (OK | {"Resource": "arn:aws"}, 'Resource arn:aws must be in ARN format or "*".'),
        (OK | {"Resource": "arn:aws:s3:::${aws:nobody}"}, "The policy variable ${aws:nobody} is not one that there is."),
        (OK | {"Principal": "*"}, "Has prohibited field Principal"),
        (OK | {"Condition": {"StringIs": {"aws:username": "a"}}}, "Invalid Condition type : StringIs."),
        (OK | {"Condition": {"ForSome:StringEquals": {"aws:username": "a"}}}, "Invalid Condition type : ForSome:StringEquals."),
        (OK | {"Condition": {"NullIfExists": {"aws:username": "true"}}}, "Invalid Condition type : NullIfExists."),
        (OK | {"Condition": {"StringEquals": {"elasticache:Engine": "a"}}}, "The condition key elasticache:Engine is not one"),
        (OK | {"Condition": {"StringEquals": {"aws:RequestTag/": "a"}}}, "The condition key aws:RequestTag/ is not one"),
        (OK | {"Condition": {"NumericEquals": {"elasticache:NumNodeGroups": "five"}}}, "Invalid value for NumericEquals"),
        (OK | {"Condition": {"DateEquals": {"aws:CurrentTime": "today"}}}, "Invalid value for DateEquals"),
        (OK | {"Condition": {"Bool": {"aws:SecureTransport": "yes"}}}, "Invalid value for Bool"),
        (OK | {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}}}, "Invalid value for IpAddress"),
        (OK | {"Condition": {"ArnLike": {"aws:SourceArn": "bob"}}}, "Invalid value for ArnLike"),
        (OK | {"Condition": {"BinaryEquals": {"aws:username": "?"}}}, "Invalid value for BinaryEquals"),
        (OK | {"Condition": {"StringEquals": {"aws:username": {"a": 1}}}}, "Syntax errors in policy."),
        (OK | {"Condition": {"StringEquals": "a"}}, "Syntax errors in policy."),
        (OK | {"Condition": []}, "Syntax errors in policy."),
        ('{"Statement": ' + "[" * 100_000, "Syntax errors in policy."),
    ],
)
def test_what_is_refused(document: Any, words: str) -> None:
    if isinstance(document, dict):
        document = json.dumps(document if "Statement" in document else {"Version": "2012-10-17", "Statement": [document]})
    with pytest.raises(MalformedPolicy) as caught:
        parse(document, "identity")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("principal", "words"),
    [
        (None, "Missing required field Principal"),
        ({}, "Syntax errors in policy."),
        ({"AWS": []}, "Missing required field Principal cannot be empty!"),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:user/*"}, "Invalid principal in policy"),
        ({"AWS": "bob"}, "Invalid principal in policy"),
        ({"Service": "ec2"}, "Invalid principal in policy"),
        ({"CanonicalUser": "79a5"}, "Invalid principal in policy"),
    ],
)
def test_principals_that_are_refused(principal: Any, words: str) -> None:
    trust: dict[str, Any] = {"Effect": "Allow", "Action": "sts:AssumeRole"} | (
        {} if principal is None else {"Principal": principal}
    )
    with pytest.raises(MalformedPolicy) as caught:
        parse(json.dumps({"Statement": trust}), "resource", at_resource=True)
    assert words in str(caught.value)


def test_a_trust_policy_names_no_resource() -> None:
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": USER.arn}}
    assert parse(json.dumps({"Statement": trust}), "resource", at_resource=True).statements[0].resources is None
    with pytest.raises(MalformedPolicy, match="Has prohibited field Resource"):
        parse(json.dumps({"Statement": trust | {"Resource": "*"}}), "resource", at_resource=True)
