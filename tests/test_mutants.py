"""What the mutation run changes, and that it tells a suite that notices from one that does not."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tools.mutants import mutants, mutated
from tools.mutate import EQUIVALENT, SOURCE, SUITES, equivalent

ROOT = Path(__file__).parent.parent


def changed(body: str) -> set[str]:
    """Every mutant of a function's body, as source."""
    source = f"def f():\n{textwrap.indent(body, '    ')}\n"
    found = [mutated(source, m) for m in mutants("m", source)]
    return {textwrap.dedent("\n".join(ast.unparse(tree).splitlines()[1:])) for tree in found}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = a and b and c", {"x = b and c", "x = a and c", "x = a and b"}),
        ("x = a or 0", {"x = 0"}),
        ("x = a < b", {"x = a <= b"}),
        ("x = a == b", {"x = a != b"}),
        ("x = not a", {"x = a"}),
        ("x = a - b", {"x = a"}),
        ("x = {n for n in s if n > 1}", {"x = {n for n in s}", "x = {n for n in s if n >= 1}"}),
        ("x = (a, b)", {"x = (b,)", "x = (a,)"}),
        ("x = replace(y, a=1)", {"x = replace(y)"}),
        ("x = any(y)", {"x = all(y)"}),
        ("do(1)", {"pass"}),
        ("return x", {"return None"}),
        ("if x:\n    y = 1", {"if True:\n    y = 1", "if False:\n    y = 1"}),
        ("x = f'{a if b else c}'", set()),
        ("x: int | None = 1", set()),
        ("log.info('%s', not x)", set()),
        ("'''words'''", set()),
    ],
)
def test_each_condition_element_and_argument_goes_once(body: str, expected: set[str]) -> None:
    assert changed(body) == expected


def test_the_order_of_the_module_s_rules_is_changed_too() -> None:
    source = "RULES = (a, b)\n"
    assert {ast.unparse(mutated(source, m)) for m in mutants("m", source)} == {"RULES = (b,)", "RULES = (a,)"}


def test_a_mutant_keeps_its_name_when_lines_move() -> None:
    source = "def f():\n    return a and b\n"
    assert [m.id for m in mutants("m", source)] == [m.id for m in mutants("m", f"import x\n\n\n{source}")]


def test_no_two_mutants_have_one_name_and_each_compiles() -> None:
    for suite in SUITES.values():
        for path in (p for glob in suite.modules for p in SOURCE.glob(glob)):
            source = path.read_text()
            found = mutants(path.stem, source)
            assert len({m.id for m in found}) == len(found)
            for m in found[:: max(1, len(found) // 5)]:
                compile(mutated(source, m), str(path), "exec")


def test_what_is_not_counted_is_there_and_says_why() -> None:
    there = {
        m.id
        for suite in SUITES.values()
        for glob in suite.modules
        for p in SOURCE.glob(glob)
        for m in mutants(".".join(p.relative_to(SOURCE).with_suffix("").parts), p.read_text())
    }
    assert all(equivalent().values())
    assert set(equivalent()) <= there, f"{EQUIVALENT.name} names mutants that are no more"


def run(*arguments: str) -> str:
    asked = [sys.executable, "-m", "tools.mutate", "plan", "--only", "plan.slots.ranges.count", "--goal", "1", *arguments]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert not done.stderr
    return f"{done.returncode} {done.stdout}"


def test_a_suite_that_notices_everything_passes() -> None:
    assert run("--tests", "tests/plan/test_cluster_slots.py").startswith("0 ")


def test_a_suite_that_notices_nothing_fails_and_names_the_survivors() -> None:
    told = run("--tests", "tests/plan/test_witness.py")
    assert told.startswith("1 ")
    assert "uncovered: " in told
