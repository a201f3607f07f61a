"""``make mutate``: change the code in one place after another, and see whether a test fails.

pytest collects a suite once, and runs it once to learn which test runs which lines. Then each mutant gets a forked process, in
which the changed code takes the place of the function's, and the tests that run its lines are run, the one that noticed it last
time first. So most mutants take less than a tenth of a second. What came of it is kept in ``.mutation/``, and a whole suite's
score in ``docs/mutations.md``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import inspect
import json
import os
import selectors
import signal
import sys
import time
import tomllib
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from _pytest.runner import runtestprotocol
from tools.mutants import Mutant, code_of, mutants, mutated

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "cachekeep"
KEPT, PAGE, EQUIVALENT = ROOT / ".mutation", ROOT / "docs" / "mutations.md", ROOT / "tools" / "equivalent_mutants.toml"
QUIET = ("-o", "addopts=", "--import-mode=importlib", *(f"-pno:{p}" for p in ("valkey", "cacheprovider", "terminal", "xdist")))
SPARE_SECONDS = 4.0
"""Of processor time, beyond several times what a test took, before a mutant counts as one that never ends."""


@dataclass(frozen=True)
class Suite:
    """Modules, and the tests that answer for them."""

    modules: tuple[str, ...]
    """Globs below ``src/cachekeep``."""
    tests: tuple[str, ...]


SUITES = {
    "plan": Suite(("plan/**/*.py",), ("tests/plan", "tests/scenarios")),
    "control": Suite(("control/*.py",), ("tests/control", "tests/scenarios", "tests/interrupt/test_interrupt.py")),
    "links": Suite(
        tuple(f"compute/{room}.py" for room in ("commands", "line", "looks", "orders", "paused_moves", "pulse")),
        ("tests/sim/test_pulse.py", "tests/contract/test_link.py", "tests/live/test_link_failover.py"),
    ),
}


class Run:
    """A pytest plugin that runs no test as pytest would, but each as often as there are mutants that it could notice."""

    def __init__(self, asked: argparse.Namespace, suite: str) -> None:
        self.asked, self.suite = asked, suite
        self.file = KEPT / f"{suite}.json"
        self.before: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.results: dict[str, dict[str, Any]] = {}
        self.sources = {_name(p): p for glob in SUITES[suite].modules for p in sorted(SOURCE.glob(glob)) if p.name != "__init__.py"}
        self.all = [m for name, path in self.sources.items() for m in mutants(name, path.read_text())]
        self.chosen = [m for m in self.all if self._chosen(m)]
        self.running: dict[int, tuple[Mutant, Any, float]] = {}
        self.seconds: dict[str, float] = {}
        self.covers: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)

    def _chosen(self, m: Mutant) -> bool:
        survived = self.before.get(m.id, {}).get("state", "survived") != "killed"
        return (
            f"{m.module}.{m.function}".startswith(self.asked.only)
            and (survived or not self.asked.survivors)
            and (not self.asked.id or m.id in self.asked.id)
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.items or session.testsfailed:
            raise pytest.UsageError("the suite cannot be collected")
        self._baseline(session)
        end = time.monotonic() + self.asked.seconds
        ready = selectors.DefaultSelector()
        waiting = iter(self.chosen)
        while True:
            while len(self.running) < self.asked.jobs and time.monotonic() < end and (m := next(waiting, None)) is not None:
                self._begin(m, ready)
            if not self.running:
                break
            for key, _ in ready.select():
                self._end(key.fd, ready)
        return True

    # -- the code as it is

    def _baseline(self, session: pytest.Session) -> None:
        files = {str(p): name for name, p in self.sources.items()}
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            began = time.process_time()
            with _lines(files) as seen:
                failed = _fails(item, following)
            if failed:
                raise pytest.UsageError(f"{item.nodeid} fails without any mutant")
            self.seconds[item.nodeid] = time.process_time() - began
            for line in seen:
                self.covers[line].append(item)

    def _tests(self, m: Mutant) -> list[pytest.Item]:
        found = {i.nodeid: i for line in range(m.lines[0], m.lines[1] + 1) for i in self.covers.get((m.module, line), ())}
        if not m.function:
            found = {i.nodeid: i for items in self.covers.values() for i in items}
        last = self.before.get(m.id, {}).get("by")
        return sorted(found.values(), key=lambda i: (i.nodeid != last, self.seconds[i.nodeid]))

    # -- one mutant

    def _begin(self, m: Mutant, ready: selectors.BaseSelector) -> None:
        tests = self._tests(m)
        if not tests:
            self._told(m, "uncovered", "", 0.0)
            return
        read, write = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(read)
            _silence()
            try:
                apply(m, self.sources[m.module])
                by = next((t.nodeid for t, n in zip(tests, [*tests[1:], None], strict=True) if self._notices(t, n)), "")
            except BaseException as error:  # the module itself does not work any more
                by = f"{type(error).__name__}: {error}"
            os.write(write, by.encode()[:4000])
            os._exit(0)
        os.close(write)
        ready.register(read, selectors.EVENT_READ)
        self.running[read] = (m, child, time.monotonic())

    def _notices(self, test: pytest.Item, following: pytest.Item | None) -> bool:
        took = self.seconds[test.nodeid]
        signal.setitimer(signal.ITIMER_PROF, SPARE_SECONDS + 5 * took)
        signal.setitimer(signal.ITIMER_REAL, 15 * (SPARE_SECONDS + 5 * took))
        return _fails(test, following)

    def _end(self, fd: int, ready: selectors.BaseSelector) -> None:
        m, child, began = self.running.pop(fd)
        by = os.read(fd, 5000).decode()
        ready.unregister(fd)
        os.close(fd)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        state = "killed" if by or ended else "survived"
        self._told(m, state, by or ("it never ends" if ended else ""), time.monotonic() - began)

    def _told(self, m: Mutant, state: str, by: str, seconds: float) -> None:
        self.results[m.id] = {"state": state, "by": by, "seconds": round(seconds, 3), "what": str(m)}
        if state != "killed":
            print(f"{state}: {m}", flush=True)
        elif self.asked.verbose:
            print(f"{state}: {m} by {by}", flush=True)

    # -- what came of it

    def keep(self) -> None:
        """The result file: what is known of each mutant that there is now."""
        KEPT.mkdir(exist_ok=True)
        there = {m.id for m in self.all}
        known = {id: r for id, r in (self.before | self.results).items() if id in there}
        self.file.write_text(json.dumps(known, indent=1, sort_keys=True))

    def score(self) -> dict[str, Counter[str]]:
        """Module → how many of its mutants were killed, survived, ran in no test, cannot matter; of this run."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        same = equivalent()
        for m in self.chosen:
            state = self.results.get(m.id, {}).get("state", "not tried")
            found[m.module]["equivalent" if m.id in same and state != "killed" else state] += 1
        return found


def apply(m: Mutant, path: Path) -> None:
    """Put the change into the running program."""
    module = importlib.import_module(f"cachekeep.{m.module}")
    tree = mutated(path.read_text(), m)
    if m.function:
        function_of(module, m.function).__code__ = code_of(tree, m.function, str(path))
        return
    statement = next(s for s in tree.body if s.lineno == m.lines[0])
    before = dict(vars(module))
    exec(compile(ast.Module([statement], []), str(path), "exec"), vars(module))  # noqa: S102 (our own source)
    changed = {name: value for name, value in vars(module).items() if name in before and before[name] is not value}
    for other in list(sys.modules.values()):  # who imported it by name has the old value
        for name, value in changed.items():
            if getattr(other, "__dict__", {}).get(name) is before[name] and other is not module:
                setattr(other, name, value)


def function_of(module: types.ModuleType, qualified: str) -> types.FunctionType:
    """The function itself, below properties and wrappers."""
    found: Any = module
    for name in qualified.split("."):
        found = inspect.getattr_static(found, name)
    while not isinstance(found, types.FunctionType):
        found = next(f for a in ("fget", "func", "__func__", "__wrapped__") if (f := getattr(found, a, None)) is not None)
    while (inner := getattr(found, "__wrapped__", None)) is not None:
        found = inner
    assert isinstance(found, types.FunctionType)
    return found


def _fails(item: pytest.Item, following: pytest.Item | None) -> bool:
    return any(r.failed for r in runtestprotocol(item, log=False, nextitem=following))


@contextlib.contextmanager
def _lines(files: dict[str, str]) -> Iterator[set[tuple[str, int]]]:
    """Which lines of these files are run meanwhile."""
    seen: set[tuple[str, int]] = set()

    def line(name: str, frame: types.FrameType, event: str, arg: object) -> Callable[..., Any]:
        seen.add((name, frame.f_lineno))
        return functools.partial(line, name)

    def call(frame: types.FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        name = files.get(frame.f_code.co_filename)
        return functools.partial(line, name) if name else None

    sys.settrace(call)
    try:
        yield seen
    finally:
        sys.settrace(None)


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def equivalent() -> dict[str, str]:
    """Id → why nothing could tell the mutant from the code."""
    return {row["id"]: row["why"] for row in tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])} if EQUIVALENT.exists() else {}


def table(scores: dict[str, dict[str, Counter[str]]]) -> str:
    """For people."""
    rows = ["| module | mutants | killed | |", "|---|---:|---:|---:|"]
    for suite, modules in scores.items():
        for name, counts in (*modules.items(), (f"**{suite}**", sum(modules.values(), Counter()))):
            able = sum(counts.values()) - counts["equivalent"]
            rows.append(f"| {name} | {able} | {counts['killed']} | {counts['killed'] / able if able else 1:.1%} |")
    return "\n".join(rows)


def page(text: str, suites: list[str]) -> str:
    """``docs/mutations.md``."""
    tests = "\n".join(f"- {name}: {', '.join(f'`{t}`' for t in SUITES[name].tests)}" for name in suites)
    return f"""# Mutations

Written by `make mutate`. Each condition, element, argument and statement is left out or turned round, one at a time
(`tools/mutants.py` says how), and the suite has to fail:

{tests}

{text}

Not counted are the mutants in `tools/equivalent_mutants.toml`, each with the reason why nothing could tell it from the code.
Survivors are listed by `make mutate`. Whether *seeds* notice a missing guard is tried in `tests/sim`.
"""


def main() -> int:
    """Exit code 1 if a suite kills less than was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__)
    parser.add_argument("suites", nargs="*", default=["plan"], help=f"of {', '.join(SUITES)}")
    parser.add_argument("--only", default="", help="a module or function, such as plan.lead.promote.succeed")
    parser.add_argument("--id", nargs="*", default=(), help="these mutants")
    parser.add_argument("--tests", nargs="*", default=(), help="instead of the suite's")
    parser.add_argument("--survivors", action="store_true", help="only those that survived last time, and new ones")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no mutant after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--goal", type=float, default=0.0, help="share of the mutants that must be killed")
    parser.add_argument("--write", action="store_true", help=f"the score into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    if asked.write and (asked.only or asked.id or asked.survivors or asked.tests):
        parser.error("a score is written of whole suites only")
    hypothesis.settings.register_profile("mutate", deadline=None, database=None, derandomize=True, max_examples=30)
    hypothesis.settings.load_profile("mutate")
    scores = {}
    for suite in asked.suites:
        run, began = Run(asked, suite), time.monotonic()
        code = pytest.main([*QUIET, *(asked.tests or SUITES[suite].tests)], plugins=[run])
        if code not in (0, 5):
            print(f"{suite}: pytest ended with {code!r}")
            return 2
        run.keep()
        scores[suite] = run.score()
        print(f"{suite}: {len(run.results)} mutants in {time.monotonic() - began:.0f} s")
    print(text := table(scores))
    if asked.write:
        PAGE.write_text(page(text, asked.suites))
    total = sum((c for s in scores.values() for c in s.values()), Counter())
    return int(total["killed"] < asked.goal * (sum(total.values()) - total["equivalent"]))


if __name__ == "__main__":
    sys.exit(main())
