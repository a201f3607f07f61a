"""What a caller may do [IAM User Guide, "Policy evaluation logic"; one account, no organisation].

An explicit deny, wherever it stands, outweighs all else. Otherwise a policy of the resource or of the identity must allow, and
so must the permissions boundary and the session policy, where there is one: they are ceilings, and allow nothing by themselves.
A resource that names the caller itself (a user, or one session) lets it in past these ceilings; one that names the session's role,
the account or everybody does not ["Permissions boundaries for IAM entities", "Evaluating effective permissions with boundaries"].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from cachekeep.security.policy import pattern
from cachekeep.security.policy.conditions import holds
from cachekeep.security.policy.pattern import Values
from cachekeep.security.policy.tree import Effect, Kind, PolicyDocument, Principals, Statement

_CEILINGS: tuple[Kind, ...] = ("boundary", "session")
_ORDER: tuple[Kind, ...] = ("resource", "identity", "boundary", "session")

Named = Literal["itself", "role", "account"]
"""How closely a policy of a resource names a caller."""


class Subject(msgspec.Struct, frozen=True):
    """Who is asking. ``role_arn`` is that of the role whose session this is."""

    arn: str
    account: str
    role_arn: str = ""


class AccessRequest(msgspec.Struct, frozen=True):
    """One action at one resource (an ARN, or ``*``). The names of ``values`` are in lower case; an empty one is none at all."""

    action: str
    resource: str
    subject: Subject
    values: Values


class Attached(msgspec.Struct, frozen=True):
    """A policy, and where it stands. ``name`` is for people."""

    kind: Kind
    name: str
    document: PolicyDocument


class Verdict(msgspec.Struct, frozen=True):
    """``by`` is the kind of policy that decided; ``explicit``: by a Deny. ``matched``: the policies that had a say."""

    allowed: bool
    by: Kind
    explicit: bool
    matched: tuple[Attached, ...]


def evaluate(request: AccessRequest, policies: Sequence[Attached]) -> Verdict:
    """Allow or deny, and by which kind of policy."""
    denying = _matching(request, policies, "Deny")
    for kind in _ORDER:
        if found := [policy for policy in denying if policy.kind == kind]:
            return Verdict(False, kind, True, tuple(found))
    allowing = _matching(request, policies, "Allow")
    named = {_named_by(request, policy) for policy in allowing if policy.kind == "resource"}
    matched = tuple(policy for policy in allowing if policy.kind != "resource" or named)
    if "itself" in named:
        return Verdict(True, "resource", False, matched)
    by: Kind = "resource" if "role" in named else "identity"
    if by == "identity" and not any(policy.kind == "identity" for policy in allowing):
        return Verdict(False, "identity", False, ())
    for kind in _CEILINGS:
        if any(policy.kind == kind for policy in policies) and not any(policy.kind == kind for policy in allowing):
            return Verdict(False, kind, False, matched)
    return Verdict(True, by, False, matched)


def keys_of(policies: Iterable[Attached]) -> frozenset[str]:
    """The condition keys that policies ask for, variables included, in lower case."""
    found: set[str] = set()
    for policy in policies:
        for statement in policy.document.statements:
            found |= {clause.key for clause in statement.clauses}
            found |= {part.key for part in _parts(statement) if isinstance(part, pattern.Variable)}
    return frozenset(found)


def _parts(statement: Statement) -> Iterable[pattern.Part]:
    texts = list(statement.resources.arns) if statement.resources else []
    for clause in statement.clauses:
        for value in clause.values:
            if isinstance(value, tuple):  # a text, or the six of an ARN
                texts += value if value and isinstance(value[0], tuple) else [value]
    return (part for text in texts for part in text)


def _matching(request: AccessRequest, policies: Iterable[Attached], effect: Effect) -> list[Attached]:
    return [p for p in policies if any(s.effect == effect and applies(s, request) for s in p.document.statements)]


def applies(statement: Statement, request: AccessRequest) -> bool:
    """Whether a statement speaks of this request."""
    return (
        _has_action(statement, request)
        and _has_resource(statement, request)
        and (statement.principals is None or _named(statement.principals, request.subject) is not None)
        and all(holds(clause, request.values) for clause in statement.clauses)
    )


def _has_action(statement: Statement, request: AccessRequest) -> bool:
    action = request.action.lower()
    return any(pattern.matches(each, action, {}) for each in statement.actions.patterns) is not statement.actions.others


def _has_resource(statement: Statement, request: AccessRequest) -> bool:
    if statement.resources is None:
        return True
    found = any(pattern.matches(arn, request.resource, request.values) for arn in statement.resources.arns)
    return found is not statement.resources.others


def _named(principals: Principals, subject: Subject) -> Named | None:
    """How closely the principals name a caller; None: not at all. Whoever ``NotPrincipal`` leaves is named as everybody is."""
    mine = {subject.arn, subject.role_arn} - {""}
    account = {subject.account, f"arn:aws:iam::{subject.account}:root"}
    if principals.others:
        return None if principals.names & (mine | account | {"*"}) else "role"
    if subject.arn in principals.names:
        return "itself"
    if principals.names & (mine | {"*"}):
        return "role"
    return "account" if principals.names & account else None


def _named_by(request: AccessRequest, policy: Attached) -> Named:
    """The closest naming among the statements that allow."""
    named = {
        _named(statement.principals, request.subject)
        for statement in policy.document.statements
        if statement.effect == "Allow" and statement.principals is not None and applies(statement, request)
    }
    return "itself" if "itself" in named else "role" if "role" in named else "account"
