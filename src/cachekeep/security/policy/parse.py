"""From a policy's JSON to its tree; what cannot be understood is refused, never passed over.

Rules: IAM User Guide, "Grammar of the IAM JSON policy language". The words of the refusals are IAM's own where it has some.
Where IAM stores what it does not know (a condition key that no service has), this refuses: such a condition would never be met.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from cachekeep.errors import CachekeepError
from cachekeep.security.policy import conditions, pattern
from cachekeep.security.policy.keys import kind_of
from cachekeep.security.policy.pattern import ANY, BadVariable, Pattern
from cachekeep.security.policy.tree import Actions, Effect, Kind, PolicyDocument, Principals, Resources, Statement

VERSIONS: Final = ("2012-10-17", "2008-10-17")
_ELEMENTS: Final = frozenset(
    {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "NotPrincipal", "Condition"}
)
_SID: Final = re.compile(r"[0-9A-Za-z]*")
_ACTION: Final = re.compile(r"\*|[0-9A-Za-z-]+:[0-9A-Za-z*?]+")
_PRINCIPAL: Final = re.compile(
    r"\*|\d{12}|arn:aws[a-z-]*:iam::\d{12}:(root|(user|role)/[\w+=,.@/-]+)|arn:aws[a-z-]*:sts::\d{12}:assumed-role/[\w+=,.@-]+/[\w+=,.@-]+"
)
_SERVICE: Final = re.compile(r"[a-z0-9.-]+\.amazonaws\.com(\.cn)?")
_FEDERATED: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:(saml|oidc)-provider/.+|[a-z0-9.-]+\.[a-z]+")
_WHO: Final = {"AWS": _PRINCIPAL, "Service": _SERVICE, "Federated": _FEDERATED}


class MalformedPolicy(CachekeepError):
    """A policy that IAM would refuse as MalformedPolicyDocument, and why."""


def parse(text: str, kind: Kind, *, at_resource: bool = False) -> PolicyDocument:
    """The tree of a policy of that kind; ``at_resource``: it stands at the one resource it is about and names none, as a role's
    trust policy. Raises ``MalformedPolicy``."""
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise MalformedPolicy("Syntax errors in policy.") from None
    if not isinstance(document, dict) or not document.keys() <= {"Version", "Id", "Statement"} or "Statement" not in document:
        raise MalformedPolicy("Syntax errors in policy.")
    version = document.get("Version", "2008-10-17")
    if version not in VERSIONS or not isinstance(document.get("Id", ""), str):
        raise MalformedPolicy("Syntax errors in policy.")
    reader = _Reader(kind, at_resource, variables=version == "2012-10-17")
    rows = document["Statement"]
    statements = tuple(reader.statement(row) for row in (rows if isinstance(rows, list) else [rows]))
    if not statements:
        raise MalformedPolicy("Syntax errors in policy.")
    sids = [statement.sid for statement in statements if statement.sid]
    if len(set(sids)) < len(sids):
        raise MalformedPolicy("Statement IDs (SID) in a single policy must be unique.")
    return PolicyDocument(statements)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that stands twice in one object would hide what stood there first."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError
    return found


def _no_number(name: str) -> Any:
    """``NaN`` and its like are not JSON, whatever Python takes."""
    raise ValueError(name)


class _Reader(msgspec.Struct):
    kind: Kind
    at_resource: bool
    variables: bool

    def statement(self, row: Any) -> Statement:
        """One statement. Raises ``MalformedPolicy``."""
        if not isinstance(row, dict) or not row.keys() <= _ELEMENTS:
            raise MalformedPolicy("Syntax errors in policy.")
        sid, effect = row.get("Sid", ""), row.get("Effect")
        if effect not in ("Allow", "Deny") or not isinstance(sid, str):
            raise MalformedPolicy("Syntax errors in policy.")
        if not _SID.fullmatch(sid) and (self.kind != "resource" or self.at_resource):
            text = "Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression [0-9A-Za-z]*"
            raise MalformedPolicy(text)
        return Statement(sid, _effect(effect), self._actions(row), self._resources(row), self._principals(row), self._clauses(row))

    def _actions(self, row: Mapping[str, Any]) -> Actions:
        texts, others = _either(row, "Action", "Policy statement must contain actions.")
        for text in texts:
            if not _ACTION.fullmatch(text):
                raise MalformedPolicy("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
        return Actions(tuple(pattern.read(text.lower(), variables=False) for text in texts), others)

    def _resources(self, row: Mapping[str, Any]) -> Resources | None:
        if self.at_resource:
            _prohibit(row, "Resource", "NotResource")
            return None
        texts, others = _either(row, "Resource", "Policy statement must contain resources.")
        return Resources(tuple(self._arn(text) for text in texts), others)

    def _arn(self, text: str) -> Pattern:
        """Of a shorter ARN whatever begins so is meant [IAM JSON policy elements: Resource]."""
        if text == "*":
            return (ANY,)
        whole = self._pattern(text)
        parts = pattern.split(whole, 6)
        if parts[0] != ("arn",) or len(parts) < 3:
            raise MalformedPolicy(f'Resource {text} must be in ARN format or "*".')
        return whole if len(parts) == 6 or whole[-1] == ANY else self._pattern(f"{text}:*")

    def _pattern(self, text: str) -> Pattern:
        try:
            return pattern.read(text, variables=self.variables)
        except BadVariable as bad:
            raise MalformedPolicy(f"The policy variable {bad} is not one that there is.") from None

    def _principals(self, row: Mapping[str, Any]) -> Principals | None:
        if self.kind != "resource":
            _prohibit(row, "Principal", "NotPrincipal")
            return None
        given = [name for name in ("Principal", "NotPrincipal") if name in row]
        if len(given) != 1:
            raise MalformedPolicy("Missing required field Principal" if not given else "Syntax errors in policy.")
        return Principals(frozenset(_principal_names(row[given[0]])), given[0] == "NotPrincipal")

    def _clauses(self, row: Mapping[str, Any]) -> tuple[conditions.Clause, ...]:
        block = row.get("Condition", {})
        if not isinstance(block, dict):
            raise MalformedPolicy("Syntax errors in policy.")
        return tuple(self._clause(name, key, values) for name, keys in block.items() for key, values in _items(keys))

    def _clause(self, name: str, key: str, values: Any) -> conditions.Clause:
        if kind_of(key) is None:
            raise MalformedPolicy(f"The condition key {key} is not one that there is.")
        texts = [_scalar(value) for value in (values if isinstance(values, list) else [values])]
        try:
            clause = conditions.read_clause(name, key, texts, variables=self.variables)
        except (ValueError, BadVariable):
            raise MalformedPolicy(f"Invalid value for {name} of {key}: {', '.join(texts)}.") from None
        if clause is None:
            raise MalformedPolicy(f"Invalid Condition type : {name}.")
        return clause


def _effect(text: Any) -> Effect:
    return "Allow" if text == "Allow" else "Deny"


def _either(row: Mapping[str, Any], name: str, missing: str) -> tuple[tuple[str, ...], bool]:
    """``Action`` or ``NotAction``, as texts, and whether it was the latter."""
    given = [n for n in (name, f"Not{name}") if n in row]
    if len(given) > 1:
        raise MalformedPolicy("Syntax errors in policy.")
    texts = _texts(row[given[0]]) if given else ()
    if not texts:
        raise MalformedPolicy(missing)
    return texts, given[0] != name


def _texts(value: Any) -> tuple[str, ...]:
    rows: Sequence[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(row, str) for row in rows):
        raise MalformedPolicy("Syntax errors in policy.")
    return tuple(rows)


def _scalar(value: Any) -> str:
    """Conditions may have JSON's truths and numbers for their texts."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise MalformedPolicy("Syntax errors in policy.")


def _items(keys: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(keys, dict):
        raise MalformedPolicy("Syntax errors in policy.")
    return keys.items()


def _principal_names(value: Any) -> Iterable[str]:
    if value == "*":
        return ("*",)
    if not isinstance(value, dict) or not value:
        raise MalformedPolicy("Syntax errors in policy.")
    names: list[str] = []
    for kind, rows in value.items():
        for text in _texts(rows):
            if kind not in _WHO or not _WHO[kind].fullmatch(text):
                raise MalformedPolicy(f'Invalid principal in policy: "{kind}":"{text}"')
            names.append(text)
    if not names:
        raise MalformedPolicy("Missing required field Principal cannot be empty!")
    return names


def _prohibit(row: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name in row:
            raise MalformedPolicy(f"Has prohibited field {name}")
