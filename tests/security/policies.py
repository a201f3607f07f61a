"""Policies and requests made by chance, of few words, so that they often meet.

What is left out, because others read it otherwise, is in ``test_policy_differential.py:test_where_they_differ``.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from cachekeep.security.policy.evaluate import AccessRequest, Attached, Subject, Verdict, evaluate
from cachekeep.security.policy.keys import has_many
from cachekeep.security.policy.parse import parse
from cachekeep.security.policy.tree import Kind

ACCOUNT = "123456789012"
ARN = f"arn:aws:elasticache:us-east-1:{ACCOUNT}"
USER = f"arn:aws:iam::{ACCOUNT}:user/bob"
SESSION, ROLE = f"arn:aws:sts::{ACCOUNT}:assumed-role/ops/bob", f"arn:aws:iam::{ACCOUNT}:role/ops"
KINDS: tuple[Kind, ...] = ("identity", "boundary", "session", "resource")

ACTIONS = ["elasticache:DescribeCacheClusters", "elasticache:DeleteCacheCluster", "elasticache:ModifyCacheCluster"]
ACTION_PATTERNS = [
    *ACTIONS,
    *["*", "elasticache:*", "ElastiCache:describe*", "elasticache:De??????CacheCluster", "iam:*", "elasticache:*Cluster"],
]
RESOURCES = [f"{ARN}:cluster:bob-1", f"{ARN}:cluster:prod-1", f"{ARN}:replicationgroup:prod"]
RESOURCE_PATTERNS = [
    *RESOURCES,
    "*",
    "arn:aws:elasticache:*:*:*",
    "arn:aws:elasticache:*:*:cluster:*",
    f"{ARN}:cluster:${{aws:username}}-*",
    f"{ARN}:cluster:${{aws:PrincipalTag/team, 'prod'}}-?",
    f"{ARN}:*prod*",
    "arn:aws:elasticache:us-east-?:*:cluster:*-1",
    "arn:aws:elasticache",
    "arn:aws:iam::*:user/*",
]
PRINCIPALS: list[Any] = [{"AWS": name} for name in (USER, SESSION, ROLE, ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/eve")]

STRINGS = ["bob", "BOB", "prod", "b*", "?ob", "${aws:username}", "${aws:PrincipalTag/team, 'bob'}", "x*"]
NUMBERS = ["1", "5", "10", "5.0", "2.5", "-1"]
DATES = ["2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z", "2030-01-01"]
ADDRESSES = ["10.0.0.0/8", "10.1.2.3/32", "203.0.113.0/24", "2001:db8::/32", "10.1.2.0/25"]
ARNS = [USER, ROLE, f"arn:aws:iam::{ACCOUNT}:user/*", f"arn:aws:iam::{ACCOUNT}:*/${{aws:username}}", "arn:aws:iam::*:role/?ps"]
VALUES: dict[str, tuple[list[str], list[str]]] = {
    "aws:username": (["bob", "BOB", "prod"], STRINGS),
    "aws:PrincipalTag/team": (["bob", "prod", "x*"], STRINGS),
    "aws:TagKeys": (["bob", "prod", "x*", "BOB"], STRINGS),
    "elasticache:NumNodeGroups": (["1", "5", "10", "2.5"], NUMBERS),
    "elasticache:MultiAZEnabled": (["true", "false"], ["true", "false", "True"]),
    "aws:CurrentTime": (["2026-01-01T00:00:00Z", "2026-06-01T00:00:01Z"], DATES),
    "aws:SourceIp": (["10.1.2.3", "203.0.113.9", "2001:db8::1"], ADDRESSES),
    "aws:PrincipalArn": ([USER, ROLE], ARNS),
}
ORDER = ["Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals"]
OPERATORS = {
    "aws:username": [
        "StringEquals",
        "StringNotEquals",
        "StringEqualsIgnoreCase",
        "StringNotEqualsIgnoreCase",
        "StringLike",
        "StringNotLike",
    ],
    "elasticache:NumNodeGroups": [f"Numeric{name}" for name in ORDER],
    "elasticache:MultiAZEnabled": ["Bool"],
    "aws:CurrentTime": [f"Date{name}" for name in ORDER],
    "aws:SourceIp": ["IpAddress", "NotIpAddress"],
    "aws:PrincipalArn": ["ArnEquals", "ArnLike", "ArnNotEquals", "ArnNotLike"],
}


def _some(chance: Random, words: list[Any], most: int = 3) -> list[Any]:
    return chance.sample(words, chance.randint(1, most))


def clause(chance: Random) -> tuple[str, str, list[str]]:
    """Operator, key and values."""
    key = chance.choice(list(VALUES))
    if chance.random() < 0.1:
        return "Null", key, [chance.choice(["true", "false"])]
    operator = chance.choice(OPERATORS.get(key, OPERATORS["aws:username"]))
    quantifier = chance.choice(["ForAnyValue:", "ForAllValues:"]) if has_many(key) or chance.random() < 0.1 else ""
    if_exists = "IfExists" if not quantifier and chance.random() < 0.2 else ""
    return f"{quantifier}{operator}{if_exists}", key, _some(chance, VALUES[key][1], 2)


def statement(chance: Random, kind: Kind) -> dict[str, Any]:
    """A statement of a policy of that kind; Allow more often than Deny."""
    made: dict[str, Any] = {"Effect": "Deny" if chance.random() < 0.2 else "Allow"}
    made["NotAction" if chance.random() < 0.15 else "Action"] = _some(chance, ACTION_PATTERNS, 2)
    element = "NotResource" if chance.random() < 0.15 else "Resource"
    words = [word for word in RESOURCE_PATTERNS if element == "Resource" or "${" not in word]
    made[element] = _some(chance, [word for word in words if kind != "resource" or word.count(":") > 2], 2)
    if kind == "resource":
        made["Principal"] = chance.choice(PRINCIPALS)
    for _ in range(chance.choice([0, 0, 1, 2])):
        operator, key, values = clause(chance)
        made.setdefault("Condition", {}).setdefault(operator, {})[key] = values
    return made


def document(chance: Random, kind: Kind) -> dict[str, Any]:
    """A policy of that kind."""
    return {"Version": "2012-10-17", "Statement": [statement(chance, kind) for _ in range(chance.randint(1, 3))]}


def case(chance: Random, *, kinds: tuple[Kind, ...] = KINDS) -> dict[str, Any]:
    """A request, and the policies that are there."""
    values: dict[str, Any] = {}
    for key, (words, _) in VALUES.items():
        if key == "aws:username" or chance.random() < 0.7:
            values[key] = _some(chance, words) if has_many(key) else chance.choice(words)
    policies: dict[Kind, list[Any]] = {kind: [] for kind in KINDS}
    for kind in kinds:
        if kind == "identity" or chance.random() < 0.3:
            policies[kind] = [document(chance, kind) for _ in range(2 if kind == "identity" else 1)]
    return {
        "action": chance.choice(ACTIONS),
        "resource": chance.choice(RESOURCES),
        "principal": chance.choice([USER, SESSION]),
        "values": values,
        "policies": policies,
    }


def decide(case: dict[str, Any]) -> Verdict:
    """What is decided of a case."""
    values = {key.lower(): [found] if isinstance(found, str) else found for key, found in case["values"].items()}
    subject = Subject(case["principal"], ACCOUNT, ROLE if case["principal"] == SESSION else "")
    attached = [
        Attached(kind, f"{kind}.{number}", parse(json.dumps(text), kind))
        for kind, texts in case["policies"].items()
        for number, text in enumerate(texts)
    ]
    return evaluate(AccessRequest(case["action"], case["resource"], subject, values), attached)
