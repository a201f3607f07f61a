"""Parameter group families: which parameters there are, what they may be, and when a change takes effect [AWS: Engine parameters].

The table is ``data/parameters.csv``; where it differs from ElastiCache and why is in docs/decisions/0007-parameters.md. What a
parameter does to a real server is ``config``'s business.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from cachekeep.engines.node_types import NodeType, node_types, offered
from cachekeep.errors import InvalidValue
from cachekeep.model.traits import traits

ChangeType = Literal["immediate", "requires-reboot"]

_FAMILIES: dict[str, str] = {  # family → the first engine version of it
    "memcached1.4": "1.4.5",
    "memcached1.5": "1.4.5",
    "memcached1.6": "1.4.5",
    "redis2.6": "2.6.13",
    "redis2.8": "2.8.6",
    "redis3.2": "3.2.4",
    "redis4.0": "4.0.10",
    "redis5.0": "5.0.0",
    "redis6.x": "6.0.0",
    "redis7": "7.0.0",
    "valkey7": "7.2.0",
    "valkey8": "8.0.0",
    "valkey9": "9.0.0",
}
_WITHOUT_CLUSTER_MODE = {"redis2.6", "redis2.8"}
_PER_NODE_TYPE = "*"


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter of one family. ``default`` is None where it depends on the node type."""

    name: str
    default: str | None
    allowed: str
    """As the API shows it: ``yes,no``, ``0-100``, ``0,20-``; empty for "anything of its type"."""
    modifiable: bool
    unattached_only: bool = False
    """Only a group that no cache uses may change it."""
    change_type: ChangeType
    data_type: Literal["string", "integer", "boolean", "float"]
    description: str
    min_engine_version: str


class NodeTypeParameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter whose value the node type decides (``CacheNodeTypeSpecificParameter`` in the API)."""

    parameter: Parameter
    values: dict[str, str]
    """Node type → value."""


@cache
def _rows() -> tuple[dict[str, str], ...]:
    return tuple(csv.DictReader(files("cachekeep.engines").joinpath("data/parameters.csv").read_text().splitlines()))


@cache
def parameters(family: str) -> dict[str, Parameter]:
    """All parameters of a family by name, in alphabetical order. Raises InvalidValue for an unknown family."""
    if family not in _FAMILIES:
        raise InvalidValue(f"{family} is not a valid parameter group family. Valid: {', '.join(_FAMILIES)}")
    return {row["name"]: _parameter(row, family) for row in _rows() if family in row["families"].split()}


def _parameter(row: dict[str, str], family: str) -> Parameter:
    shown = {
        "default": None if row["default"] == _PER_NODE_TYPE else row["default"],
        "modifiable": row["modifiable"] != "no",
        "unattached_only": row["modifiable"] == "unattached",
        "change_type": row["change"],
        "data_type": row["type"],
        "min_engine_version": row["since"] or _FAMILIES[family],
    }
    return msgspec.convert({k: row[k] for k in ("name", "allowed", "description")} | shown, Parameter)


def families() -> tuple[str, ...]:
    """All families, in order."""
    return tuple(_FAMILIES)


def engine_of(family: str) -> str:
    """``valkey8`` → ``valkey``."""
    return re.split(r"\d", family, maxsplit=1)[0]


def default_groups() -> dict[str, str]:
    """The groups that are always there: name → family."""
    plain = {f"default.{family}": family for family in _FAMILIES}
    clustered = {f"default.{family}.cluster.on": family for family in _FAMILIES if has_cluster_mode(family)}
    return plain | clustered


def has_cluster_mode(family: str) -> bool:
    return traits(engine_of(family)).replicates and family not in _WITHOUT_CLUSTER_MODE


def defaults(family: str, cluster_on: bool = False) -> dict[str, str]:
    """Default value of every parameter that does not depend on the node type."""
    known = {p.name: p.default for p in parameters(family).values() if p.default is not None}
    return known | ({"cluster-enabled": "yes"} if cluster_on and has_cluster_mode(family) else {})


def node_type_value(name: str, node: NodeType) -> str | None:
    """The value that a node type gives a parameter, None for parameters that it does not decide."""
    match name:
        case "maxmemory":
            return str(node.maxmemory)
        case "maxclients" | "max_simultaneous_connections":
            return str(node.maxclients)
        case "max_cache_memory":
            return str(node.cache_mb) if node.cache_mb is not None else None
        case "num_threads":
            return str(node.threads)
        case _:
            buffer = re.fullmatch(r"client-output-buffer-limit-(replica|slave)-(hard|soft)-limit", name)
            return str(node.replica_buffer) if buffer else None


def node_type_parameters(family: str) -> tuple[NodeTypeParameter, ...]:
    """The parameters of a family that depend on the node type, for DescribeCacheParameters and DescribeEngineDefaultParameters."""
    names = offered(engine_of(family))
    return tuple(
        NodeTypeParameter(parameter=p, values={n: v for n in names if (v := node_type_value(p.name, node_types()[n])) is not None})
        for p in parameters(family).values()
        if p.default is None
    )


def validate(family: str, name: str, value: str, *, attached: bool = False) -> str:
    """The value in canonical form. ``attached``: some cache uses the group.

    Raises InvalidValue: unknown name, not modifiable, wrong type, out of range.
    """
    p = parameters(family).get(name)
    if p is None:
        raise InvalidValue(f"The parameter {name} does not exist in the parameter group family {family}.")
    if not p.modifiable:
        raise InvalidValue(f"The parameter {name} cannot be modified.")
    if p.unattached_only and attached:
        raise InvalidValue(f"The parameter {name} cannot be modified while a cache uses the parameter group.")
    canonical = _canonical(p, value)
    if canonical is None:
        raise InvalidValue(
            f"The value {value!r} is not valid for the parameter {name}: it must be {_shape(p)}.",
        )
    return canonical


def check_together(family: str, values: dict[str, str]) -> None:
    """Rules between parameters of one group. Raises InvalidValue [AWS: Managing reserved memory]."""
    if "reserved-memory" in values and "reserved-memory-percent" in values:
        raise InvalidValue("Only one of reserved-memory and reserved-memory-percent can be set.")
    low, high = values.get("active-defrag-cycle-min"), values.get("active-defrag-cycle-max")
    known = defaults(family)
    if low is not None or high is not None:
        low, high = low or known["active-defrag-cycle-min"], high or known["active-defrag-cycle-max"]
        if int(low) > int(high):
            raise InvalidValue(f"active-defrag-cycle-min ({low}) is above active-defrag-cycle-max ({high}).")


def _canonical(p: Parameter, value: str) -> str | None:
    value = value.strip()
    if p.name == "notify-keyspace-events":
        return value if re.fullmatch(r"[KEg$lshzxetdmnA]*", value) else None
    if p.data_type in ("integer", "float"):
        number = _number(p, value)
        return (
            None
            if number is None or (p.allowed and not _within(p.allowed, number))
            else f"{number:g}"
            if number % 1
            else str(int(number))
        )
    folded = value.lower()
    return folded if not p.allowed or folded in p.allowed.split(",") else None


def _number(p: Parameter, value: str) -> float | None:
    pattern = r"[+-]?\d{1,18}" if p.data_type == "integer" else r"[+-]?\d{1,9}(\.\d{1,6})?"
    if not re.fullmatch(pattern, value, re.ASCII):
        return None
    return int(value) if p.data_type == "integer" else float(value)


def _within(allowed: str, number: float) -> bool:
    """``allowed`` is a list of numbers and ranges; a range without an end has none."""
    for part in allowed.split(","):
        found = re.fullmatch(r"(-?[\d.]+)(?:(-)(-?[\d.]+)?)?", part)
        if found is None:
            raise ValueError(f"{allowed!r} is not a list of ranges")
        low, dash, high = found.groups()
        if float(low) <= number <= (float(high) if high else float("inf") if dash else float(low)):
            return True
    return False


def _shape(p: Parameter) -> str:
    kind = {"integer": "an integer", "float": "a number", "boolean": "0 or 1", "string": "text"}[p.data_type]
    if not p.allowed:
        return kind
    return f"{kind} within {p.allowed}" if p.data_type in ("integer", "float") else f"one of {p.allowed}"
