"""Mutants: what a module would be if one condition, element, argument or statement of it were missing or turned round.

Only what could guard something is changed: no sentences, no annotations, no numbers. A mutant's name is made of what it changes and
not of where that stands, so it stays the same when lines move.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_EDGE: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OTHER = {"any": "all", "all": "any", "min": "max", "max": "min"}
_TAKEN_AWAY = (ast.Sub, ast.Add, ast.BitOr, ast.BitAnd)
_WORDS = (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)
"""What is said, what mypy is told."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module. ``node`` and ``variant`` count in the order of ``_places`` and ``_variants``."""

    module: str
    function: str
    """Qualified; empty: a statement of the module itself."""
    what: str
    lines: tuple[int, int]
    node: int
    variant: int
    ordinal: int
    """Among those that read the same."""

    @property
    def id(self) -> str:
        text = "\0".join((self.module, self.function, self.what, str(self.ordinal)))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def __str__(self) -> str:
        return f"{self.id} {self.module}:{self.lines[0]} {self.function or '(module)'}: {self.what}"


@dataclass
class _Place:
    """A node and where it hangs."""

    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    function: str
    statement: ast.stmt

    @property
    def is_condition(self) -> bool:
        """Taken as a whole elsewhere: always, never, or left out. To turn it round as well would tell nothing more."""
        return isinstance(self.parent, ast.BoolOp | ast.If | ast.IfExp | ast.While | ast.comprehension)

    def put(self, new: ast.AST | None) -> None:
        """In place of what is there; None: nothing."""
        if self.index is None:
            setattr(self.parent, self.field, new)
            return
        there: list[ast.AST] = getattr(self.parent, self.field)
        if new is None:
            del there[self.index]
        else:
            there[self.index] = new


def mutants(module: str, source: str) -> list[Mutant]:
    """All of a module's."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()
    for i, place in enumerate(_places(ast.parse(source))):
        for j, (what, _) in enumerate(_variants(place)):
            seen[place.function, what] += 1
            first, last = place.statement.lineno, place.statement.end_lineno or place.statement.lineno
            if isinstance(place.node, ast.expr) and hasattr(place.statement, "body"):
                first, last = place.node.lineno, place.node.end_lineno or place.node.lineno
            found.append(Mutant(module, place.function, what, (first, last), i, j, seen[place.function, what]))
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module with that change."""
    tree = ast.parse(source)
    place = next(p for i, p in enumerate(_places(tree)) if i == mutant.node)
    new = [new for _, new in _variants(place)][mutant.variant]
    place.put(new)
    return ast.fix_missing_locations(tree)


def code_of(tree: ast.Module, function: str, file: str) -> types.CodeType:
    """The compiled body of a function of this module."""
    waiting = [compile(tree, file, "exec")]
    while waiting:
        code = waiting.pop()
        if code.co_qualname == function:
            return code
        waiting += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    raise LookupError(function)


def _places(tree: ast.Module) -> Iterator[_Place]:
    """Every node that may change: in functions, and in assignments of the module itself."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            yield from _below(statement, "", statement, only="value")
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _below(statement, statement.name, statement, only="body")
        elif isinstance(statement, ast.ClassDef):
            for method in statement.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _below(method, f"{statement.name}.{method.name}", method, only="body")


def _below(parent: ast.AST, function: str, statement: ast.stmt, *, only: str = "") -> Iterator[_Place]:
    for field, value in ast.iter_fields(parent):
        if (only and field != only) or (
            field in ("annotation", "returns", "decorator_list", "args") and isinstance(parent, ast.stmt)
        ):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or isinstance(node, _WORDS) or _is_log(node):
                continue
            within = node if isinstance(node, ast.stmt) else statement
            yield _Place(parent, field, index, node, function, within)
            yield from _below(node, function, within)


def _is_log(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Constant) or (
        isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("log", "self._log")
    )


def _variants(place: _Place) -> Iterator[tuple[str, ast.AST | None]]:
    """What could stand there instead, and the words for it."""
    node = place.node
    match node:
        case ast.BoolOp(values=values):
            for i, value in enumerate(values):
                if isinstance(value, ast.Constant) and not value.value:
                    continue  # ``x or 0``: instead of None
                rest = values[:i] + values[i + 1 :]
                new = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                yield f"without `{_short(value)}` of `{_short(node)}`", new
        case ast.Compare(ops=[op]) if type(op) in (_EDGE if place.is_condition else _EDGE | _TURNED):
            other = copy.copy(node)
            other.ops = [(_EDGE | _TURNED)[type(op)]()]
            yield f"`{_short(other)}` for `{_short(node)}`", other
        case ast.UnaryOp(op=ast.Not() | ast.USub()) if not place.is_condition:
            yield f"`{_short(node.operand)}` for `{_short(node)}`", node.operand
        case ast.BinOp(op=op) if isinstance(op, _TAKEN_AWAY):
            yield f"`{_short(node.left)}` for `{_short(node)}`", node.left
        case ast.If() | ast.IfExp() | ast.While():
            for word in (True, False) if not isinstance(node, ast.While) else (False,):
                other = copy.copy(node)
                other.test = ast.Constant(word)
                yield f"{'always' if word else 'never'} `if {_short(node.test)}`", other
        case ast.comprehension(ifs=ifs):
            for i, test in enumerate(ifs):
                other = copy.copy(node)
                other.ifs = ifs[:i] + ifs[i + 1 :]
                yield f"all, without `if {_short(test)}`", other
        case ast.Tuple(elts=elts, ctx=ast.Load()) | ast.List(elts=elts, ctx=ast.Load()) | ast.Set(elts=elts):
            for i, element in enumerate(elts if len(elts) > 1 else []):
                other = copy.copy(node)
                other.elts = elts[:i] + elts[i + 1 :]  # type: ignore[attr-defined]
                yield f"without `{_short(element)}` in `{_short(node)}`", other
        case ast.Call(func=func, keywords=keywords):
            for i, keyword in enumerate(keywords):
                other = copy.copy(node)
                other.keywords = keywords[:i] + keywords[i + 1 :]
                yield f"without `{keyword.arg}={_short(keyword.value)}` in `{_short(func)}(…)`", other
            if isinstance(func, ast.Name) and func.id in _OTHER:
                other = copy.copy(node)
                other.func = ast.Name(_OTHER[func.id], ast.Load())
                yield f"`{_short(other)}` for `{_short(node)}`", other
        case ast.Constant(value=bool()) if not isinstance(place.parent, ast.keyword | ast.Compare):
            yield f"`{not node.value}` for `{node.value}` in `{_short(place.statement)}`", ast.Constant(not node.value)
        case ast.Return(value=value) if value is not None and not (isinstance(value, ast.Constant) and not value.value):
            yield f"`return None` for `{_short(node)}`", ast.Return(ast.Constant(None))
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise() | ast.Continue() | ast.Break():
            yield f"without `{_short(node)}`", ast.Pass()


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}"
