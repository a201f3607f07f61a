"""iam:SimulateCustomPolicy: the words in which decisions are told. What is decided is tried in tests/security."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from tests.services.rig import ACCOUNT, Rig, refused

from cachekeep.security.policy.evaluate import AccessRequest, Attached, Verdict, evaluate

BOB = f"arn:aws:iam::{ACCOUNT}:user/bob"
ACTIONS = ["elasticache:DescribeEvents", "elasticache:DeleteUser"]


def policy(**statement: Any) -> str:
    whole = {"Effect": "Allow", "Action": "elasticache:Describe*", "Resource": "*"} | statement
    return json.dumps({"Version": "2012-10-17", "Statement": whole})


def tried(rig: Rig, *policies: str, **more: Any) -> list[dict[str, Any]]:
    found = rig.client("iam").simulate_custom_policy(PolicyInputList=policies, **{"ActionNames": ACTIONS} | more)
    assert found["IsTruncated"] is False
    return list(found["EvaluationResults"])


def test_decisions(rig: Rig) -> None:
    allowed, denied = tried(rig, policy())
    assert (allowed["EvalActionName"], allowed["EvalResourceName"], allowed["EvalDecision"]) == (ACTIONS[0], "*", "allowed")
    assert [m["SourcePolicyId"] for m in allowed["MatchedStatements"]] == ["PolicyInputList.1"]
    assert (denied["EvalDecision"], denied["MatchedStatements"]) == ("implicitDeny", [])
    explicit = tried(rig, policy(), policy(Effect="Deny"))[0]
    assert explicit["EvalDecision"] == "explicitDeny"
    assert [m["SourcePolicyId"] for m in explicit["MatchedStatements"]] == ["PolicyInputList.2"]


def test_a_boundary_says_whether_it_let_pass(rig: Rig) -> None:
    for ceiling, decision in ((policy(), "allowed"), (policy(Action="s3:*"), "implicitDeny")):
        found = tried(rig, policy(), PermissionsBoundaryPolicyInputList=[ceiling])[0]
        assert found["EvalDecision"] == decision
        assert found["PermissionsBoundaryDecisionDetail"]["AllowedByPermissionsBoundary"] is (decision == "allowed")


def test_resources_callers_and_keys(rig: Rig) -> None:
    arns = [f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:{name}" for name in ("bob-1", "eve-1")]
    own = policy(Resource="arn:aws:elasticache:*:*:cluster:${aws:username}-*")
    asked = {"ActionNames": ACTIONS[:1], "ResourceArns": arns}
    assert [row["MissingContextValues"] for row in tried(rig, own, **asked)] == [["aws:username"]] * 2
    entries = [{"ContextKeyName": "aws:UserName", "ContextKeyValues": ["bob"], "ContextKeyType": "string"}]
    found = tried(rig, own, ContextEntries=entries, **asked)
    assert [row["EvalDecision"] for row in found] == ["allowed", "implicitDeny"]
    assert [row["MissingContextValues"] for row in found] == [[], []]
    named = {"ResourcePolicy": policy(Principal={"AWS": BOB}), "CallerArn": BOB}
    assert tried(rig, policy(Action="s3:*"), **named)[0]["EvalDecision"] == "allowed"


def test_pages(rig: Rig) -> None:
    pages = rig.client("iam").get_paginator("simulate_custom_policy")
    found = pages.paginate(PolicyInputList=[policy()], ActionNames=ACTIONS, PaginationConfig={"PageSize": 1})
    assert [[row["EvalActionName"] for row in page["EvaluationResults"]] for page in found] == [[action] for action in ACTIONS]


def test_only_what_is_on_the_page_is_tried_and_not_on_the_thread_of_keepers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def counted(request: AccessRequest, policies: Sequence[Attached]) -> Verdict:
        threads.append(threading.get_ident())
        return evaluate(request, policies)

    async def here() -> int:
        return threading.get_ident()

    monkeypatch.setattr("cachekeep.services.iam.simulate.evaluate", counted)
    resources = [f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster:{number}" for number in range(100)]
    asked = {"PolicyInputList": [policy()], "ActionNames": ["elasticache:DescribeEvents"] * 100, "ResourceArns": resources}
    page = rig.client("iam").simulate_custom_policy(**asked, MaxItems=10)
    assert [row["EvalResourceName"] for row in page["EvaluationResults"]] == resources[:10]
    assert len(threads) == 10
    assert rig.run(here()) not in threads


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ActionNames": ["a:b"] * 101, "ResourceArns": ["arn:aws:a:b:c:d"] * 100}, "at most 10000"),
        ({"PolicyInputList": ["{"]}, "PolicyInputList.1: Syntax errors in policy."),
        ({"ResourcePolicy": policy()}, "ResourcePolicy.1: Missing required field Principal"),
        ({"ResourcePolicy": policy(Principal="*")}, "CallerArn must say who is asking"),
        ({"ActionNames": ["Describe"]}, "Invalid Action Name: Describe"),
        ({"ResourceArns": ["cluster"]}, "Invalid Resource ARN: cluster"),
        ({"CallerArn": "bob"}, "Invalid CallerArn"),
        ({"ContextEntries": [{"ContextKeyName": "aws:nothing", "ContextKeyValues": ["x"]}]}, "aws:nothing is not one"),
        ({"ContextEntries": [{"ContextKeyName": "aws:userid", "ContextKeyValues": ["a", "b"]}]}, "has one value at the most"),
    ],
)
def test_what_is_refused(rig: Rig, asked: dict[str, Any], words: str) -> None:
    error = refused(rig.client("iam").simulate_custom_policy, **{"PolicyInputList": [policy()], "ActionNames": ACTIONS} | asked)
    assert error.code == "InvalidInput"
    assert words in error.message
