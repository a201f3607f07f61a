"""Parameters against the model's constraints: required, length, range, pattern, enum; refused in each service's own words.

Checkers are built once per shape; a shape without constraints anywhere below it has none and costs nothing.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from cachekeep.wire.faults import ApiError, Malformed
from cachekeep.wire.model import OperationShape, Shape

Rule = Literal["required", "length_min", "length_max", "value_min", "value_max", "pattern", "enum"]
Path = tuple[str, ...]
Checker = Callable[[Any, Path, list["Problem"]], None]

ENUMS_OPEN: Final[Mapping[str, frozenset[str]]] = {
    # AWS adds types weekly and answers an unknown one with the operation's own error.
    "ec2": frozenset({"InstanceType"}),
}
PATTERNS_OPEN: Final[Mapping[str, frozenset[str]]] = {
    # The model has it with the slashes of another language's pattern literals around it.
    "iam": frozenset({"rolePathPatternType"}),
}
# Not marked sensitive by the models, yet never to be read back in an error.
SECRETS: Final = frozenset({"AuthToken", "Passwords", "Password", "NewPassword", "OldPassword", "SecretAccessKey"})
_PATTERN_LENGTH_MAX: Final = 65_536
_SHOWN_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule. ``bound`` is the limit, the pattern or the allowed values."""

    path: Path
    rule: Rule
    value: Any
    bound: Any = None
    secret: bool = False


class Validator:
    """Checks the parameters of one service's operations."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._checkers: dict[str, Checker | None] = {}

    def check(self, operation: OperationShape, params: Mapping[str, Any]) -> None:
        """Raises ApiError, worded as the service words it, when a rule is broken."""
        checker = self._checker(operation.input) if operation.input is not None else None
        if checker is not None:
            problems: list[Problem] = []
            checker(params, (), problems)
            if problems:
                raise _STYLES[self._service](problems)

    def _checker(self, shape: Shape) -> Checker | None:
        name = shape.name
        if name not in self._checkers:
            # A shape that contains itself calls through this until its own checker is known.
            self._checkers[name] = lambda value, path, problems: (self._checkers[name] or _accept)(value, path, problems)
            self._checkers[name] = self._build(shape)
        return self._checkers[name]

    def _build(self, shape: Shape) -> Checker | None:
        match shape.type:
            case "structure":
                return self._structure(shape)
            case "list":
                return self._list(shape)
            case "map":
                return self._map(shape)
            case "string":
                return self._string(shape)
            case "blob":
                return _sized(shape)
            case "integer" | "long" | "float" | "double":
                return _ranged(shape)
        return None

    def _structure(self, shape: Shape) -> Checker | None:
        required = shape.required
        members = {name: checker for name, member in shape.members.items() if (checker := self._checker(member.shape)) is not None}
        if not required and not members:
            return None

        def structure(value: Mapping[str, Any], path: Path, problems: list[Problem]) -> None:
            for name in required:
                if name not in value:
                    problems.append(Problem((*path, name), "required", None))
            for name, below in value.items():
                checker = members.get(name)
                if checker is not None:
                    checker(below, (*path, name), problems)

        return structure

    def _list(self, shape: Shape) -> Checker | None:
        sized, item = _sized(shape), self._checker(shape.item.shape)
        if item is None:
            return sized

        def items(value: list[Any], path: Path, problems: list[Problem]) -> None:
            if sized is not None:
                sized(value, path, problems)
            for index, below in enumerate(value, 1):
                item(below, (*path, str(index)), problems)

        return items

    def _map(self, shape: Shape) -> Checker | None:
        sized, key, below_of = _sized(shape), self._checker(shape.key.shape), self._checker(shape.value.shape)
        if key is None and below_of is None:
            return sized

        def entries(value: Mapping[Any, Any], path: Path, problems: list[Problem]) -> None:
            if sized is not None:
                sized(value, path, problems)
            for name, below in value.items():
                if key is not None:
                    key(name, path, problems)
                if below_of is not None:
                    below_of(below, (*path, str(name)), problems)

        return entries

    def _string(self, shape: Shape) -> Checker | None:
        sized, secret = _sized(shape), shape.sensitive
        enum = shape.enum if shape.name not in ENUMS_OPEN.get(self._service, ()) else ()
        pattern = shape.pattern if shape.name not in PATTERNS_OPEN.get(self._service, ()) else None
        allowed = frozenset(enum)
        if not enum and not pattern:
            return sized

        def string(value: str, path: Path, problems: list[Problem]) -> None:
            before = len(problems)
            if sized is not None:
                sized(value, path, problems)
            hidden = secret or not SECRETS.isdisjoint(path)
            if allowed and value not in allowed:
                problems.append(Problem(path, "enum", value, enum, hidden))
            well_sized = len(problems) == before and len(value) <= _PATTERN_LENGTH_MAX
            if pattern and well_sized and not matches(pattern, value):
                problems.append(Problem(path, "pattern", value, pattern, hidden))

        return string


def _accept(value: Any, path: Path, problems: list[Problem]) -> None:
    pass


def _sized(shape: Shape) -> Checker | None:
    low, high, secret = shape.minimum or 0, shape.maximum, shape.sensitive
    if not low and high is None:
        return None

    def sized(value: Any, path: Path, problems: list[Problem]) -> None:
        hidden = secret or not SECRETS.isdisjoint(path)
        if len(value) < low:
            problems.append(Problem(path, "length_min", value, low, hidden))
        elif high is not None and len(value) > high:
            problems.append(Problem(path, "length_max", value, high, hidden))

    return sized


def _ranged(shape: Shape) -> Checker | None:
    low, high = shape.minimum, shape.maximum
    if low is None and high is None:
        return None

    def ranged(value: float, path: Path, problems: list[Problem]) -> None:
        if low is not None and value < low:
            problems.append(Problem(path, "value_min", value, low))
        elif high is not None and value > high:
            problems.append(Problem(path, "value_max", value, high))

    return ranged


# ------------------------------------------------------------------ Java's patterns in Python


# A character outside ASCII stands in the text as its category: one private-use character for each of the 30.
_CATEGORIES: Final = (
    *("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"),
    *("Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"),
)
_STAND_INS: Final = {category: chr(0xE000 + index) for index, category in enumerate(_CATEGORIES)}
_JAVA_CLASS: Final = re.compile(r"\\p\{(\w+)\}")


def matches(pattern: str, value: str) -> bool:
    """Whether all of ``value`` is of a model's pattern: Java's dialect, where ``\\w`` and ``\\d`` are ASCII."""
    if not value.isascii() and _JAVA_CLASS.search(pattern):
        value = "".join(char if char.isascii() else _STAND_INS[unicodedata.category(char)] for char in value)
    return _compiled(pattern).fullmatch(value) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    text = pattern
    for beyond in (r"\u10000-\u10FFFF", r"\uD800\uDC00-\uDBFF\uDFFF"):  # Java's patterns are of UTF-16 units
        text = text.replace(beyond, "\U00010000-\U0010ffff")
    return re.compile(_JAVA_CLASS.sub(_class_of, text), re.ASCII)


def _class_of(found: re.Match[str]) -> str:
    """A class of Java's in Python's words: alone it needs brackets of its own."""
    before = found.string[: found.start()]
    within = before.rfind("[") > before.rfind("]")
    return _members_of(found[1]) if within else f"[{_members_of(found[1])}]"


def _members_of(category: str) -> str:
    """The inside of a bracket expression for ``L``, ``Zs`` …: its ASCII characters and its stand-ins. ``Print`` is POSIX's."""
    if category == "Print":
        return " -~"
    plain = [chr(code) for code in range(128) if unicodedata.category(chr(code)).startswith(category)]
    return re.escape("".join(plain)) + "".join(stand_in for name, stand_in in _STAND_INS.items() if name.startswith(category))


# ------------------------------------------------------------------ the services' words


def _shown(problem: Problem) -> str:
    """The offending value for a message: never a secret, never long."""
    if problem.secret:
        return "****"
    value = problem.value
    text = base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def _constraint(problem: Problem) -> str:
    match problem.rule:
        case "required":
            return "Member must not be null"
        case "length_min":
            return f"Member must have length greater than or equal to {problem.bound}"
        case "length_max":
            return f"Member must have length less than or equal to {problem.bound}"
        case "value_min":
            return f"Member must have value greater than or equal to {problem.bound}"
        case "value_max":
            return f"Member must have value less than or equal to {problem.bound}"
        case "pattern":
            return f"Member must satisfy regular expression pattern: {problem.bound}"
        case "enum":
            return f"Member must satisfy enum value set: [{', '.join(problem.bound)}]"


def _coral_path(path: Path) -> str:
    """``tags.1.member.key``."""
    return ".".join(f"{part}.member" if part.isdigit() else part[:1].lower() + part[1:] for part in path)


def _coral_text(problem: Problem) -> str:
    value = "null" if problem.rule == "required" else f"'{_shown(problem)}'"
    return f"Value {value} at '{_coral_path(problem.path)}' failed to satisfy constraint: {_constraint(problem)}"


def _coral(code: str) -> Callable[[list[Problem]], ApiError]:
    """The framework's own words, as IAM, STS, CloudWatch and KMS send them."""

    def style(problems: list[Problem]) -> ApiError:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        return ApiError(code, count + "; ".join(map(_coral_text, problems[:20])))

    return style


def _plain_constraint(problem: Problem) -> str:
    match problem.rule:
        case "enum":
            return f"valid values are {', '.join(problem.bound)}"
        case "length_min" | "length_max":
            return f"it must have at {'least' if problem.rule == 'length_min' else 'most'} {problem.bound} " + (
                "characters" if isinstance(problem.value, str) else "elements"
            )
        case "value_min" | "value_max":
            return f"it must be at {'least' if problem.rule == 'value_min' else 'most'} {problem.bound}"
    return f"it must match the pattern {problem.bound}"


def _elasticache(problems: list[Problem]) -> ApiError:
    first = problems[0]
    name = ".".join(first.path)
    if first.rule == "required":
        return ApiError("InvalidParameterValue", f"The parameter {name} must be provided and must not be blank.")
    return ApiError("InvalidParameterValue", f"Invalid value '{_shown(first)}' for {name}: {_plain_constraint(first)}.")


def _ec2(problems: list[Problem]) -> ApiError:
    first = problems[0]
    name = ".".join(first.path)
    if first.rule == "required":
        return ApiError("MissingParameter", f"The request must contain the parameter {name}")
    return ApiError(
        "InvalidParameterValue", f"Value ({_shown(first)}) for parameter {name} is invalid. {_plain_constraint(first)}."
    )


def _sns(problems: list[Problem]) -> ApiError:
    first = problems[0]
    name = ".".join(first.path)
    if first.rule == "required":
        return ApiError("InvalidParameter", f"Invalid parameter: {name} Reason: no value for required parameter")
    return ApiError("InvalidParameter", f"Invalid parameter: {name} Reason: {_plain_constraint(first)}")


_STYLES: Final[Mapping[str, Callable[[list[Problem]], ApiError]]] = {
    "elasticache": _elasticache,
    "ec2": _ec2,
    "sns": _sns,
    "iam": _coral("ValidationError"),
    "sts": _coral("ValidationError"),
    "cloudwatch": _coral("ValidationError"),
    "kms": _coral("ValidationException"),
    "application-autoscaling": _coral("ValidationException"),
    "cloudtrail": _coral("ValidationException"),
}
_MALFORMED_CODES: Final = {"elasticache": "InvalidParameterValue", "ec2": "InvalidParameterValue"}


def malformed(error: Malformed, service: str, *, query: bool) -> ApiError:
    """What a client is told about a body or value that cannot be read; the value itself is not repeated."""
    code = _MALFORMED_CODES.get(service, "MalformedInput") if query else "SerializationException"
    place = f"The value of {'.'.join(error.path)}" if error.path else "The request"
    return ApiError(code, f"{place} is malformed: expected {error.expected}.")
