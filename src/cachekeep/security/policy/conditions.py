"""Condition operators [IAM User Guide, "IAM JSON policy elements: Condition operators"]."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import ipaddress
import operator
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from cachekeep.security.policy import pattern
from cachekeep.security.policy.keys import has_many
from cachekeep.security.policy.pattern import Pattern, Values

Quantifier = Literal["", "ForAnyValue", "ForAllValues"]


class Operator(msgspec.Struct, frozen=True):
    """How values are compared.

    ``read`` takes a value of the policy apart (ValueError: it cannot be one), ``test`` holds a value of the request to it: what
    is none of the operator's kind satisfies nothing. ``negated`` ones hold where ``test`` does for none of the policy's values.
    """

    read: Callable[[str, bool], Any]
    test: Callable[[Any, str, Values], bool]
    negated: bool = False


class Clause(msgspec.Struct, frozen=True):
    """One key of one operator of a Condition. ``values`` are read already."""

    operator: str
    quantifier: Quantifier
    if_exists: bool
    key: str
    values: tuple[Any, ...]


def holds(clause: Clause, values: Values) -> bool:
    """Whether a request satisfies it."""
    found = values.get(clause.key, ())
    if clause.operator == "Null":
        return any(wanted is not bool(found) for wanted in clause.values)
    how = OPERATORS[clause.operator]
    if not found:
        return clause.if_exists or clause.quantifier == "ForAllValues" or (not clause.quantifier and how.negated)
    if not clause.quantifier and has_many(clause.key):
        return False  # a key of many values needs ForAnyValue or ForAllValues
    each = (any(how.test(wanted, value, values) for wanted in clause.values) is not how.negated for value in found)
    return all(each) if clause.quantifier == "ForAllValues" else any(each)


def _literal(text: str, variables: bool) -> Pattern:
    return pattern.read(text, variables=variables, wildcards=False)


def _like(text: str, variables: bool) -> Pattern:
    return pattern.read(text, variables=variables)


def _folded(wanted: Pattern, value: str, values: Values) -> bool:
    return pattern.matches(wanted, value, values, str.casefold)


def read_arn(text: str, variables: bool) -> tuple[Pattern, ...]:
    """The six parts of an ARN; raises ValueError."""
    parts = pattern.split(pattern.read(text, variables=variables), 6)
    if len(parts) < 6 or parts[0] != ("arn",):
        raise ValueError
    return tuple(parts)


def _is_arn_like(wanted: tuple[Pattern, ...], value: str, values: Values) -> bool:
    parts = value.split(":", 5)
    return len(parts) == 6 and all(pattern.matches(w, part, values) for w, part in zip(wanted, parts, strict=True))


_NUMBER: Final = re.compile(r"[+-]?\d{1,40}(\.\d{1,40})?")
_DATE: Final = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d))?)?)?")


def _number(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return Decimal(text)


def _moment(text: str) -> Decimal:
    """Seconds of the epoch, from these themselves or from a date of the W3C's profile of ISO 8601. A year alone is the former."""
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text):
        return Decimal(text)
    if not _DATE.fullmatch(text):
        raise ValueError
    date = dt.datetime.fromisoformat(text + "-01" if len(text) == 7 else text)
    return Decimal(str((date if date.tzinfo else date.replace(tzinfo=dt.UTC)).timestamp()))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError from None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def _within(network: ipaddress.IPv4Network | ipaddress.IPv6Network, address: str) -> bool:
    return ipaddress.ip_address(address) in network


def _compared(read: Callable[[str], Any], compare: Callable[[Any, Any], bool], *, negated: bool = False) -> Operator:
    """Of two values of one kind, the request's first."""

    def test(wanted: Any, value: str, values: Values) -> bool:
        try:
            return compare(read(value), wanted)
        except ValueError:
            return False

    return Operator(lambda text, variables: read(text), test, negated)


def _ip(*, negated: bool = False) -> Operator:
    def test(wanted: Any, value: str, values: Values) -> bool:
        try:
            return _within(wanted, value)
        except ValueError:
            return False

    return Operator(lambda text, variables: _network(text), test, negated)


def _ordered(kind: str, read: Callable[[str], Any]) -> dict[str, Operator]:
    """The six comparisons of a kind that has an order."""
    return {
        f"{kind}Equals": _compared(read, operator.eq),
        f"{kind}NotEquals": _compared(read, operator.eq, negated=True),
        f"{kind}LessThan": _compared(read, operator.lt),
        f"{kind}LessThanEquals": _compared(read, operator.le),
        f"{kind}GreaterThan": _compared(read, operator.gt),
        f"{kind}GreaterThanEquals": _compared(read, operator.ge),
    }


OPERATORS: Final = {
    "StringEquals": Operator(_literal, pattern.matches),
    "StringNotEquals": Operator(_literal, pattern.matches, negated=True),
    "StringEqualsIgnoreCase": Operator(_literal, _folded),
    "StringNotEqualsIgnoreCase": Operator(_literal, _folded, negated=True),
    "StringLike": Operator(_like, pattern.matches),
    "StringNotLike": Operator(_like, pattern.matches, negated=True),
    **_ordered("Numeric", _number),
    **_ordered("Date", _moment),
    "Bool": _compared(_truth, operator.eq),
    "BinaryEquals": _compared(_bytes, operator.eq),
    "IpAddress": _ip(),
    "NotIpAddress": _ip(negated=True),
    # "Both ArnEquals and ArnLike behave identically" [the same page].
    "ArnEquals": Operator(read_arn, _is_arn_like),
    "ArnLike": Operator(read_arn, _is_arn_like),
    "ArnNotEquals": Operator(read_arn, _is_arn_like, negated=True),
    "ArnNotLike": Operator(read_arn, _is_arn_like, negated=True),
}

_NAME: Final = re.compile(r"(?:(ForAnyValue|ForAllValues):)?([A-Za-z]+?)(IfExists)?")


def read_clause(name: str, key: str, texts: Sequence[str], *, variables: bool) -> Clause | None:
    """One clause; None for an operator that there is not. Raises ValueError or ``BadVariable`` for a value that it cannot have."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    quantifier: Any = found[1] or ""
    if found[2] == "Null":
        return None if found[3] or quantifier else Clause("Null", "", False, key.lower(), tuple(_truth(text) for text in texts))
    if (how := OPERATORS.get(found[2])) is None:
        return None
    return Clause(found[2], quantifier, bool(found[3]), key.lower(), tuple(how.read(text, variables) for text in texts))
