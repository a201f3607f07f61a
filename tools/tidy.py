"""What keeps the house in order: no long files and lines, no dead names, no name for two nouns, no field that leads nowhere,
no circle of imports.

``python -m tools.tidy`` prints the size of the whole and of its heart, and every finding; ``tests/test_tidy.py`` fails by them.
Names are compared by their spelling: two that are called the same hide each other. That finds less than there is.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cachekeep"
LINES, COLUMNS = 500, 132
PUBLIC = "packages/cachekeep-patterns/src/cachekeep_patterns/"
"""A library: its users are elsewhere."""
HEART = ("plan/lead/", "control/keeper.py", "control/execute.py", "store/contract.py")
"""Who leads, the keeper, the effects, the leases."""

OVERLONG = {
    f"{PUBLIC}aside.py": 626,
    "src/cachekeep/store/sql.py": 522,
    "src/cachekeep/sim/world.py": 511,
}
"""Files that are too long, and how long at the most: a number here may fall, none may be added."""


@cache
def texts() -> dict[str, str]:
    """The text files that git knows or would take, by path; what is generated or vendored is nobody's prose."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {
        path: (ROOT / path).read_text()
        for path in sorted(listed.stdout.splitlines())
        if path.endswith((".py", ".md", ".mjs", ".go")) or "." not in path.rpartition("/")[2]
        if (ROOT / path).is_file() and not path.startswith("docs/reference/") and not path.endswith("LICENSE")
    }


@cache
def parsed(*places: str) -> dict[str, ast.Module]:
    """The Python files of these places."""
    return {path: ast.parse(text) for path, text in texts().items() if path.endswith(".py") and path.startswith(places)}


def sources() -> dict[str, ast.Module]:
    """The program, without its tests and tools."""
    return parsed("src/", PUBLIC)


def long_files() -> list[str]:
    found = []
    for path in sources():
        count, most = len(texts()[path].splitlines()), OVERLONG.get(path, LINES)
        if count > most:
            found.append(f"{path} has {count} lines, {most} are the most")
    return found


def long_lines() -> list[str]:
    """In Python, the Makefile and scripts; words to a tool at the end of a line do not count, nor does what cannot be broken."""
    return [
        f"{path}:{number} has {len(line)} columns, {COLUMNS} are the most"
        for path, text in texts().items()
        if not path.endswith((".md", ".go", ".mjs"))
        for number, line in enumerate((re.sub("  # (type|fmt|noqa)[:].*", "", line) for line in text.splitlines()), 1)
        if len(line) > COLUMNS and " " in line.strip(" #")
    ]


CIRCLES = [{"cachekeep.store.sql", "cachekeep.store.sql_transaction"}]
"""Circles known to be: this list only shrinks."""


def circles() -> list[str]:
    """Modules that import each other, be it for types only."""
    names = {path.partition("src/")[2].removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources()}
    imports = {name: {m for m in _imported(sources()[path], names) if m != name} for name, path in names.items()}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = imports[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    behind = {name: reached(name) for name in names}
    known = {name for ring in CIRCLES for name in ring}
    rings = {frozenset(other for other in behind[name] if name in behind[other]) for name in names if name in behind[name]}
    return [f"{' and '.join(sorted(ring))} import each other" for ring in rings if not ring <= known]


def _imported(tree: ast.Module, known: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from (name for name in (full if full in known else node.module,) if name in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


# --- names


HOOKS = {
    *("data_received", "eof_received", "pause_writing", "resume_writing"),  # asyncio
    *("down_revision",),  # alembic
    *("format_commands",),  # click
    *("capture_signals",),  # uvicorn
}
"""Names that a library looks for."""

FOR_TESTS = ("src/cachekeep/sim/", "src/cachekeep/chaos/")
"""What is used by a test there is used."""

KEPT = {"operation_names", "seconds_since", "includes", "remembered"}
"""Dead, and known to be: this set only shrinks."""


def _definitions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions, classes, methods and constants. Not fields, which ``one_way_fields`` looks at, nor what is local."""
    todo: list[ast.Module | ast.ClassDef] = [tree]
    while todo:
        scope = todo.pop()
        for node in scope.body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield name, node.lineno
                case ast.ClassDef(name=name):
                    yield name, node.lineno
                    todo.append(node)
                case ast.Assign(targets=targets):
                    yield from ((target.id, node.lineno) for target in targets if isinstance(target, ast.Name))
                case ast.AnnAssign(target=ast.Name(id=name)) if scope is tree:
                    yield name, node.lineno


def _uses(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                yield name
            case ast.Constant(value=str(text)) if text.isidentifier():
                yield text  # getattr, and annotations in quotes
            case ast.MatchClass(kwd_attrs=names):
                yield from names


def dead_names() -> list[str]:
    """What the program defines and only its tests name, if anybody."""
    used = {name for tree in parsed("src/", PUBLIC, "tools/", "benchmarks/").values() for name in _uses(tree)}
    tried = {name for tree in parsed("tests/").values() for name in _uses(tree)}
    return [
        f"{path}:{line} {name} is used nowhere"
        for path, tree in sources().items()
        if not path.startswith(PUBLIC)
        for name, line in _definitions(tree)
        if name not in used | HOOKS | KEPT | (tried if path.startswith(FOR_TESTS) else set()) and not re.fullmatch("__.*__", name)
    ]


TWICE = {"Fault", "Member", "Run"}
"""Nouns that the simulator has too, as something else: this set only shrinks."""


def nouns_twice() -> list[str]:
    """One noun, one name: classes of the same name are taken for each other."""
    found: dict[str, list[str]] = {}
    for path, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not path.startswith(PUBLIC):
                found.setdefault(node.name, []).append(path)
    return [f"{name} is a class of {' and of '.join(at)}" for name, at in found.items() if len(at) > 1 and name not in TWICE]


# --- fields


TABLE = "src/cachekeep/model/traits.py"
"""It gives its nouns their values itself."""


def _fields() -> dict[str, list[str]]:
    """The fields of each noun, by its name."""
    return {
        node.name: [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        for path, tree in sources().items()
        if path.startswith("src/cachekeep/model/") and path != TABLE
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


ONE_WAY = {
    "ReplicaSeen.lag_seconds",
}
"""Fields that are only read or only written, and known to be: this set only shrinks. Each stands for a promise that is not kept."""

NO_NAMES = tuple(f"src/cachekeep/{room}/" for room in ("model", "plan", "sim", "store/migrations"))
"""Here fields go by their attributes: a string that is one's name dates it anew, at most, and gives it no value."""


def one_way_fields() -> list[str]:
    """Fields of nouns that nobody outside ``model`` gives a value, or that nobody reads:
    such a field promises what nothing keeps. What a simulated world says is no value either."""
    nouns = _fields()
    written: set[str] = set()
    read: set[str] = set()
    for path, tree in sources().items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=function, args=arguments, keywords=keywords) if not path.startswith(
                    ("src/cachekeep/model/", "src/cachekeep/sim/")
                ):
                    written |= {keyword.arg for keyword in keywords if keyword.arg}
                    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                    given = None if any(isinstance(a, ast.Starred) for a in arguments) else len(arguments)
                    written |= set(nouns.get(name, [])[:given])
                case ast.Constant(value=str(text)) if not path.startswith(NO_NAMES):  # by name, as an API's parameter or as JSON
                    written.add(text)
                    read.add(text)
                case ast.Attribute(attr=name, ctx=ast.Load()):
                    read.add(name)
                case ast.MatchClass(cls=cls, kwd_attrs=names, patterns=patterns):
                    read |= set(names)
                    read |= set(nouns.get(cls.id if isinstance(cls, ast.Name) else "", [])[: len(patterns)])
    fields = [(f"{noun}.{field}", field) for noun, fields in nouns.items() for field in fields]
    found = {f"{name} is never given a value": name for name, field in fields if field not in written}
    found |= {f"{name} is never read": name for name, field in fields if field not in read}
    stale = [f"{name} is read and written: ONE_WAY need not name it" for name in sorted(ONE_WAY - set(found.values()))]
    return [finding for finding, name in found.items() if name not in ONE_WAY] + stale


# --- words and sizes


STIFF = re.compile(r"\b(sh[a]ll|wh[o]m)\b", re.IGNORECASE)
"""Words that plain prose does without."""


def stiff_words() -> list[str]:
    return [
        f"{path}:{number} says {word}: the present tense will do, and the name of the node's role"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        for word in STIFF.findall(line)
    ]


def compared_sentences() -> list[str]:
    """Programs compare values, people read sentences: no ``because`` stands beside an operator, or is taken apart."""
    return [
        f"{path}:{node.lineno} compares a sentence"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if any(isinstance(x, ast.Attribute | ast.Name) and _name(x) == "because" for x in _compared(node))
    ]


_TAKEN_APART = {"startswith", "endswith", "find", "index", "partition", "rpartition", "split", "splitlines", "match", "search"}


def _compared(node: ast.AST) -> list[ast.expr]:
    """What this operation looks into."""
    match node:
        case ast.Compare(left, ops, comparators) if not all(isinstance(op, ast.Is | ast.IsNot) for op in ops):
            return [left, *comparators]
        case ast.Match(subject):
            return [subject]
        case ast.Call(ast.Attribute(value, name), arguments) if name in _TAKEN_APART:
            return [value, *arguments]
        case _:
            return []


def _name(node: ast.Attribute | ast.Name) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id


def size(*places: str) -> int:
    """Lines of code and prose in these parts of the program."""
    where = tuple(f"src/cachekeep/{place}" for place in places)
    return sum(len(text.splitlines()) for path, text in texts().items() if path.endswith(".py") and path.startswith(where))


CHECKS = (
    long_files,
    long_lines,
    circles,
    dead_names,
    nouns_twice,
    one_way_fields,
    stiff_words,
    compared_sentences,
)


def main() -> int:
    """Print sizes and findings; 1 if there is a finding."""
    print(f"heart {size(*HEART)} lines, whole {size('')} lines")
    findings = [finding for check in CHECKS for finding in check()]
    for finding in findings:
        print(finding)
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
