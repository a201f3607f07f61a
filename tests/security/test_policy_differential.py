"""The evaluator beside another one, written by others from the same pages: npm's @cloud-copilot/iam-simulate.

It says of itself that session policies are still to come; ours are tried in ``test_policy.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.clients import toolchain
from tests.security.policies import ACTIONS, ARN, KINDS, RESOURCES, SESSION, USER, case, decide

SOURCE = Path(__file__).parent / "simulator"
CASES = 3000


def _install(place: Path) -> None:
    toolchain.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=place)


def _simulated(cases: list[dict[str, Any]]) -> list[str]:
    locked = {name: (SOURCE / name).read_bytes() for name in ("package.json", "package-lock.json")}
    packages = toolchain.made_once("simulator", locked, _install)
    program = packages / f"simulate-{os.getpid()}.mjs"  # imports are looked for beside the program that runs
    program.write_bytes((SOURCE / "simulate.mjs").read_bytes())
    try:
        lines = "".join(json.dumps(each) + "\n" for each in cases)
        done = subprocess.run(["node", program], input=lines, capture_output=True, text=True, timeout=120, check=False)
    finally:
        program.unlink()
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _decided(each: dict[str, Any]) -> str:
    verdict = decide(each)
    return "Allowed" if verdict.allowed else "ExplicitlyDenied" if verdict.explicit else "ImplicitlyDenied"


@toolchain.needs("node", "npm")
def test_both_decide_alike() -> None:
    chance = Random(11)
    cases = [case(chance, kinds=("identity", "boundary", "resource")) for _ in range(CASES)]
    ours = [_decided(each) for each in cases]
    theirs = _simulated(cases)
    assert len(theirs) == CASES
    assert min(Counter(theirs).values()) > CASES / 20, "one of the three answers is hardly tried"
    different = [(mine, other, each) for mine, other, each in zip(ours, theirs, cases, strict=True) if mine != other]
    assert not different, f"{len(different)} differ; the first: {json.dumps(different[0], indent=1)}"


def _one(principal: str = USER, values: dict[str, Any] | None = None, **policies: dict[str, Any]) -> dict[str, Any]:
    """A case of one statement for each kind of policy."""
    made: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for kind, statement in policies.items():
        whole = {"Effect": "Allow", "Action": "*"} | ({} if "NotResource" in statement else {"Resource": "*"}) | statement
        made[kind] = [{"Version": "2012-10-17", "Statement": [whole]}]
    return {"action": ACTIONS[0], "resource": RESOURCES[0], "principal": principal, "values": values or {}, "policies": made}


EXPLAINED = {
    # "Variables and tags", "Policy variables with no value": it is effectively null, which nothing equals and nothing is like, and
    # which operators that are inverted therefore match. The other drops the whole statement.
    "a variable without a value in NotResource": (_one(identity={"NotResource": f"{ARN}:cluster:${{aws:username}}"}), True),
    "a variable without a value in an inverted operator": (
        _one(
            values={"aws:PrincipalTag/team": "a"},
            identity={"Condition": {"StringNotEquals": {"aws:PrincipalTag/team": "${aws:username}"}}},
        ),
        True,
    ),
    # The same page: ${*} has the fixed value *, wherever there may be variables. The other replaces it in StringLike only.
    "an asterisk by name in StringEquals": (
        _one(values={"aws:username": "x*"}, identity={"Condition": {"StringEquals": {"aws:username": "x${*}"}}}),
        True,
    ),
    # "IAM JSON policy elements: Resource": wildcards may stand within the individual segments. The other takes none in front of the
    # colon that follows the type, if another character follows that.
    "a wildcard for the type of the resource": (_one(identity={"Resource": f"{ARN}:*:bob-1"}), True),
    # All addresses are in 0.0.0.0/0. The other shifts by 32 bits, which in JavaScript is by none.
    "the network of all addresses": (
        _one(values={"aws:SourceIp": "203.0.113.9"}, identity={"Condition": {"IpAddress": {"aws:SourceIp": "0.0.0.0/0"}}}),
        True,
    ),
    # An address of one family is not an address of the other. The other finds it neither in nor out.
    "not this address, from another family": (
        _one(values={"aws:SourceIp": "2001:db8::1"}, identity={"Condition": {"NotIpAddress": {"aws:SourceIp": "10.1.2.3"}}}),
        True,
    ),
    # "IAM JSON policy elements: Resource": a shorter ARN is completed, whatever policy it is in.
    "a shorter ARN in the policy of a resource": (
        _one(resource={"Principal": {"AWS": USER}, "Resource": "arn:aws:elasticache"}),
        True,
    ),
    # "Permissions boundaries for IAM entities" lets a user past who is named by ARN. Everybody is named less closely than that.
    "everybody, past a boundary": (_one(resource={"Principal": "*"}, boundary={"Action": "iam:*"}), False),
    # The same of sessions ["Session policies"]: a resource that names the session itself adds to what its policy allows.
    "one session, past its policy": (
        _one(SESSION, resource={"Principal": {"AWS": SESSION}}, session={"Action": "iam:*"}),
        True,
    ),
}


@toolchain.needs("node", "npm")
def test_where_they_differ() -> None:
    """Each difference that chance has found, why ours is right, and that it is still there: else chance may look for it again."""
    theirs = dict(zip(EXPLAINED, _simulated([each for each, _ in EXPLAINED.values()]), strict=True))
    assert {name: _decided(each) == "Allowed" for name, (each, _) in EXPLAINED.items()} == {n: a for n, (_, a) in EXPLAINED.items()}
    assert {name: answer == "Allowed" for name, answer in theirs.items()} == {n: not a for n, (_, a) in EXPLAINED.items()}
