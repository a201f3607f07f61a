"""Callers retry by the code: what a handler can refuse with, its operation declares in AWS's model."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from functools import cache
from typing import Any

import pytest

from cachekeep.services import core, elasticache
from cachekeep.services.core.operation import Operation
from cachekeep.services.core.quotas import Quota
from cachekeep.services.elasticache import names, quotas
from cachekeep.services.elasticache.absent import MISSING
from cachekeep.wire.model import service_model

MODEL = service_model("elasticache")
MODULES = {each.name for package in (core, elasticache) for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")}
COMMON = {"InvalidParameterValue", "InvalidParameterCombination", "ServiceUnavailable"}
"""[AWS, "Common Errors" of ElastiCache]."""
QUOTAS = {name: value.code for name, value in vars(quotas).items() if isinstance(value, Quota)}


BESIDE: dict[str, set[str]] = {}
"""What a handler can refuse with and the model does not declare, and why."""


class _Module:
    """The functions and tables of one module, and what its names mean that it has from others of ours."""

    def __init__(self, name: str) -> None:
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        self.name = name
        self.own: dict[str, ast.AST] = {}
        self.meant: dict[str, str] = {}
        for node in tree.body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self.own[node.name] = node
                case ast.AnnAssign(target=ast.Name(id=table), value=ast.expr() as value) if table != "OPERATIONS":
                    self.own[table] = value
                case ast.ImportFrom(module=str(source)) if source.startswith("cachekeep."):
                    self.meant |= {each.asname or each.name: f"{source}.{each.name}" for each in node.names}

    def find(self, node: ast.AST) -> tuple[_Module, str] | None:
        """Where a name or an attribute is defined, if that is one of the services' modules."""
        match node:
            case ast.Name(id=name) if name in self.own:
                return self, name
            case ast.Name(id=name) if name in self.meant:
                source, _, attribute = self.meant[name].rpartition(".")
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in self.meant:
                source = self.meant[name]
            case _:
                return None
        if source not in MODULES:
            return None
        found = _module(source)
        return (found, attribute) if attribute in found.own else None


@cache
def _module(name: str) -> _Module:
    return _Module(name)


def codes(handler: Any) -> set[str]:
    """The codes that a handler and all that it calls can raise; of those that are made by a table, by what it was made with."""
    found = _made_with(handler)
    todo: list[tuple[_Module, ast.AST]] = [(_module(handler.__module__), ast.parse(textwrap.dedent(inspect.getsource(handler))))]
    seen: set[tuple[str, str]] = set()
    while todo:
        module, tree = todo.pop()
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODEL.faults:
                found.add(node.value)
            if isinstance(node, ast.Attribute) and node.attr in QUOTAS:
                found.add(QUOTAS[node.attr])
            where = module.find(node)
            if where and (where[0].name, where[1]) not in seen and where[1] != "MISSING":
                seen.add((where[0].name, where[1]))
                todo.append((where[0], where[0].own[where[1]]))
    return found


def _made_with(handler: Any) -> set[str]:
    """The not-found codes of the kinds that a Describe of nothing looks for."""
    kinds = inspect.getclosurevars(handler).nonlocals.get("ids", {}) if inspect.isfunction(handler) else {}
    return {MISSING[kind]("x").code for kind in kinds.values()}


SERVED = sorted((name, each) for name, each in elasticache.SERVICE.operations.items() if each.mode != "refuses")


@pytest.mark.parametrize(("name", "operation"), SERVED, ids=[name for name, _ in SERVED])
def test_a_code_is_declared_for_its_operation(name: str, operation: Operation) -> None:
    declared = {MODEL.faults[error["shape"]].code for error in MODEL.raw["operations"][name].get("errors", ())}
    assert codes(operation.handler) - declared - COMMON == BESIDE.get(name, set())


def test_what_has_no_name_in_the_model_is_not_raised() -> None:
    """The codes of every kind of resource that can be named in an ARN are those of the operations on tags."""
    declared = {MODEL.faults[error["shape"]].code for error in MODEL.raw["operations"]["ListTagsForResource"]["errors"]}
    assert {MISSING[kind]("x").code for kind in names.ARN_KINDS & MISSING.keys()} <= declared
