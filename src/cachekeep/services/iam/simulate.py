"""Policies tried out: what would be allowed, by the code that allows."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.model import IamGroup
from cachekeep.security.policy.evaluate import AccessRequest, Attached, Subject, Verdict, evaluate, keys_of
from cachekeep.security.policy.keys import has_many, kind_of
from cachekeep.security.policy.parse import MalformedPolicy, parse
from cachekeep.security.policy.tree import Kind
from cachekeep.services.core import paging
from cachekeep.services.core.authorise import of_caller, policies_of, subject_of
from cachekeep.services.core.callers import Caller
from cachekeep.services.core.context import Context, Params, ServiceSettings
from cachekeep.services.core.operation import Operation, reads
from cachekeep.services.core.parameters import Declared, Effect, Moot, NotYet
from cachekeep.services.iam import find
from cachekeep.services.iam.find import HOLDERS
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_TRIED_MAX: Final = 10_000
"""Actions times resources of one request; only those of the page that is asked for are tried."""
_ACTION: Final = re.compile(r"[0-9A-Za-z-]+:[0-9A-Za-z]+")
_CALLER: Final = re.compile(
    r"arn:aws:(?:iam::\d{12}:(?:root|user/[^:*?]+|role/[^:*?]+)|sts::\d{12}:assumed-role/[^:*?/]+/[^:*?/]+)"
)
_POLICIES: Final[Mapping[str, Kind]] = {
    "PolicyInputList": "identity",
    "PermissionsBoundaryPolicyInputList": "boundary",
    "ResourcePolicy": "resource",
}


async def custom(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What policies that are given would allow. Nothing is stored, and nobody is asked for rights but to simulate."""
    params = call.params
    policies = await asyncio.to_thread(_given, params)
    if "ResourcePolicy" in params and "CallerArn" not in params:
        raise _invalid("A ResourcePolicy names principals, so CallerArn must say who is asking.")
    return await asyncio.to_thread(_answer, params, policies, _subject(params.get("CallerArn"), context.settings), {})


async def of_principal(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """What the policies of a user, group or role would allow, and others beside them; a boundary that is given stands for its
    own."""
    params, account = call.params, context.settings.account
    arn: str = params["PolicySourceArn"]
    kind = next((kind for kind in HOLDERS if arn.startswith(f"arn:aws:iam::{account}:{kind.word}/")), None)
    if kind is None:
        raise _invalid(f"{arn} is not the ARN of a user, a group or a role of this account.")
    holder = await find.holder(tx, kind, arn.rpartition("/")[2])
    given = await asyncio.to_thread(_given, params)
    if any(policy.kind == "boundary" for policy in given) and not isinstance(holder, IamGroup):
        holder = replace(holder, boundary="")
    own = await policies_of(holder, tx)
    if isinstance(holder, IamGroup):
        return await asyncio.to_thread(_answer, params, [*own, *given], Subject("", account), {})
    caller = Caller(holder)
    subject = subject_of(caller, account)
    return await asyncio.to_thread(_answer, params, [*own, *given], subject, of_caller(caller, subject))


def _given(params: Params) -> list[Attached]:
    """The policies of a request. Raises ApiError InvalidInput."""
    return [
        _read(text, kind, f"{name}.{number}")
        for name, kind in _POLICIES.items()
        for number, text in enumerate(_listed(params.get(name, ())), 1)
    ]


def _answer(
    params: Params, policies: Sequence[Attached], subject: Subject, known: Mapping[str, Sequence[str]]
) -> Mapping[str, Any]:
    """The results, a page of them, by action and then by resource. Raises ApiError InvalidInput."""
    entries = {**known, **_entries(params)}
    missing = sorted(keys_of(policies) - entries.keys())
    actions, resources = params["ActionNames"], params.get("ResourceArns", ["*"])
    for action in actions:
        if not _ACTION.fullmatch(action):
            raise _invalid(f"Invalid Action Name: {action}")
    for resource in resources:
        if resource != "*" and len(resource.split(":", 5)) < 6:
            raise _invalid(f"Invalid Resource ARN: {resource}")
    if len(actions) * len(resources) > _TRIED_MAX:
        raise _invalid(
            f"There are {len(actions)} actions at {len(resources)} resources: at most {_TRIED_MAX} can be tried at once."
        )

    def tried(row: tuple[str, str, str]) -> Mapping[str, Any]:
        _, action, resource = row
        verdict = evaluate(AccessRequest(action, resource, subject, entries), policies)
        return _shape(action, resource, verdict, policies, missing)

    rows = [(f"{number:06}", *pair) for number, pair in enumerate(itertools.product(actions, resources))]
    return find.listing(paging.page(rows, params, lambda row: row[0], tried, "EvaluationResults", find.PAGES))


def _shape(action: str, resource: str, verdict: Verdict, policies: Sequence[Attached], missing: Sequence[str]) -> Mapping[str, Any]:
    decision = "allowed" if verdict.allowed else "explicitDeny" if verdict.explicit else "implicitDeny"
    shape: dict[str, Any] = {
        "EvalActionName": action,
        "EvalResourceName": resource,
        "EvalDecision": decision,
        "MatchedStatements": [
            {"SourcePolicyId": policy.name, "SourcePolicyType": "Resource Policy" if policy.kind == "resource" else "IAM Policy"}
            for policy in verdict.matched
        ],
        "MissingContextValues": list(missing),
    }
    if any(policy.kind == "boundary" for policy in policies):
        shape["PermissionsBoundaryDecisionDetail"] = {
            "AllowedByPermissionsBoundary": verdict.allowed or verdict.by != "boundary",
        }
    return shape


def _entries(params: Params) -> Mapping[str, Sequence[str]]:
    entries: dict[str, Sequence[str]] = {}
    for entry in params.get("ContextEntries", ()):
        name, values = entry.get("ContextKeyName", ""), entry.get("ContextKeyValues", [])
        if kind_of(name) is None:
            raise _invalid(f"The context key {name} is not one that there is.")
        if len(values) > 1 and not has_many(name):
            raise _invalid(f"The context key {name} has one value at the most.")
        entries[name.lower()] = values
    return entries


def _subject(arn: str | None, settings: ServiceSettings) -> Subject:
    """Who is asking. Without a name: somebody of this account who is nobody in particular."""
    if arn is None:
        return Subject("", settings.account)
    if not _CALLER.fullmatch(arn):
        raise _invalid(f"Invalid CallerArn: {arn}")
    _, _, service, _, account, name = arn.split(":", 5)
    return Subject(arn, account, f"arn:aws:iam::{account}:role/{name.split('/')[1]}" if service == "sts" else "")


def _listed(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _read(text: str, kind: Kind, name: str) -> Attached:
    try:
        return Attached(kind, name, parse(text, kind))
    except MalformedPolicy as error:
        raise _invalid(f"{name}: {error}") from None


def _invalid(message: str) -> ApiError:
    return ApiError("InvalidInput", message)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "SimulateCustomPolicy": reads(custom),
    "SimulatePrincipalPolicy": reads(of_principal),
}

PARAMETERS: Final[Declared] = {
    "PolicyInputList": Effect("what the identity may do"),
    "PolicySourceArn": Effect("the user, group or role whose policies are tried"),
    "PolicyExclusionList": NotYet("Leaving policies of the user out"),
    "SimulatePrincipalPolicy:CallerArn": NotYet("A caller other than the user"),
    "PermissionsBoundaryPolicyInputList": Effect("the most that it may do"),
    "ResourcePolicy": Effect("who is let in by the resource"),
    "ActionNames": Effect("what is tried"),
    "ResourceArns": Effect("at which resources; without them at `*`"),
    "CallerArn": Effect("who tries it, for the principals of a resource's policy"),
    "ContextEntries": Effect("what conditions find in the request"),
    "ContextEntries.ContextKeyName": Effect("the key"),
    "ContextEntries.ContextKeyValues": Effect("its values"),
    "ContextEntries.ContextKeyType": Moot("the key has its type already, and each operator reads values as its own"),
    "ResourceOwner": NotYet("An owner other than this account"),
    "ResourceHandlingOption": NotYet("Trying resources that EC2 starts instances with"),
    "OrderedOrganizationPolicyInputList": NotYet("Policies of an organization"),
}
