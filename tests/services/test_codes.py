"""Callers retry by the code: what a handler can refuse with, its operation declares in AWS's model."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from cachekeep.services import core, elasticache
from cachekeep.services.core.operation import Operation
from cachekeep.services.core.quotas import Quota
from cachekeep.services.elasticache import quotas
from cachekeep.wire.model import service_model

MODEL = service_model("elasticache")
COMMON = {"InvalidParameterValue", "InvalidParameterCombination", "ServiceUnavailable"}
"""[AWS, "Common Errors" of ElastiCache]."""
QUOTAS = {name: value.code for name, value in vars(quotas).items() if isinstance(value, Quota)}


ROOM = {"NodeQuotaForClusterExceeded", "NodeQuotaForCustomerExceeded", "InsufficientCacheClusterCapacity"}
GONE = "CacheSubnetGroupNotFoundFault"
"""Of a cache that is there: its subnet group cannot be deleted, so nobody ever meets it."""
BESIDE: dict[str, set[str]] = {
    # A value that reserves memory may need more than there is; ElastiCache, which has always enough, declares no code for that.
    "ModifyCacheParameterGroup": ROOM,
    "ResetCacheParameterGroup": ROOM,
    "IncreaseReplicaCount": {GONE, "NodeQuotaForClusterExceeded"},
    "ModifyCacheCluster": {GONE},
    # `tags.forget_members` brings names of the operations on tags with it, which are not called.
    "ModifyReplicationGroupShardConfiguration": {GONE, "NodeQuotaForClusterExceeded", "CacheParameterGroupNotFound"}
    | {"TagQuotaPerResourceExceeded", "InvalidARN", "CacheClusterNotFound"},
}
"""What this test finds and the model does not declare, and why."""


def _definitions() -> dict[str, list[ast.AST]]:
    """Every function and table of the services, by its bare name: of two of one name, both."""
    found: dict[str, list[ast.AST]] = {}
    for package in (core, elasticache):
        for path in Path(inspect.getfile(package)).parent.glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.setdefault(node.name, []).append(node)
    return found


DEFINED = _definitions()
AMBIGUOUS = {name for name, nodes in DEFINED.items() if len(nodes) > 1}


def codes(handler: Any) -> set[str]:
    """The codes that a handler and all that it calls by name can raise."""
    found: set[str] = set()
    todo: list[ast.AST] = list(ast.parse(inspect.getsource(handler).lstrip()).body)
    seen: set[str] = set()
    while todo:
        for node in ast.walk(todo.pop()):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if name in QUOTAS:
                found.add(QUOTAS[name])
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODEL.faults:
                found.add(node.value)
            if name in DEFINED and name not in seen and name not in AMBIGUOUS:
                seen.add(name)
                todo += DEFINED[name]
    return found


WRITING = sorted((name, each) for name, each in elasticache.SERVICE.operations.items() if each.mode != "refuses")


@pytest.mark.parametrize(("name", "operation"), WRITING, ids=[name for name, _ in WRITING])
def test_a_code_is_declared_for_its_operation(name: str, operation: Operation) -> None:
    declared = {MODEL.faults[error["shape"]].code for error in MODEL.raw["operations"][name].get("errors", ())}
    assert codes(operation.handler) - declared - COMMON == BESIDE.get(name, set())
