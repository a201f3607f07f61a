"""How the suite is run: who gets which tests, and when the client library's are left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import order

ROOT = Path(__file__).parents[2]
LIBRARY = "packages/cachekeep-patterns"
TESTS = f"{LIBRARY}/tests"


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_worker_begins_with_its_share_of_the_slow_files_and_nothing_is_lost(workers: int) -> None:
    names = [f"tests/live/test_{at}.py" for at in range(8)] + [f"tests/plan/test_{at}.py" for at in range(20)]
    items = [SimpleNamespace(nodeid=f"{name}::test_{n}") for name in names for n in range(5)]
    dealt = order.dealt(items, workers)  # type: ignore[arg-type]
    assert sorted(item.nodeid for item in dealt) == sorted(item.nodeid for item in items)
    assert dealt == order.dealt(items, workers), "all workers must come to the same list"  # type: ignore[arg-type]
    left = dealt
    for more in range(workers, 0, -1):  # as pytest-xdist shares them out
        share, left = left[: len(left) // more], left[len(left) // more :]
        mine = [order.rank(item.nodeid) < len(order.SLOW) for item in share]
        assert mine == sorted(mine, reverse=True), "slow ones first"
        assert abs(sum(mine) - 40 / workers) <= 5


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of two tests, one of them the client library's."""
    for name, text in {
        "pyproject.toml": f"[tool.pytest.ini_options]\ntestpaths = ['tests', '{TESTS}']\naddopts = '--import-mode=importlib'\n",
        "conftest.py": "pytest_plugins = ['unchanged']\n",
        "unchanged.py": (ROOT / "tests" / "unchanged.py").read_text(),
        f"{LIBRARY}/src/cachekeep_patterns/aside.py": "x = 1\n",
        f"{TESTS}/test_library.py": "def test_library(): assert 1\n",
        "tests/test_program.py": "def test_program(): assert 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def ran(checkout: Path, *arguments: str, **environment: str) -> set[str]:
    """Which of the two tests passed."""
    kept = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith(("PYTEST_", "CACHEKEEP_TEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *arguments],
        cwd=checkout,
        env=kept | {"XDG_CACHE_HOME": str(checkout / "cache"), "PYTHONPATH": str(checkout)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout
    assert (f"{TESTS} is left out" in done.stdout) == ("::test_library" not in done.stdout), "it is said, and only then"
    return {name for name in ("test_library", "test_program") if f"::{name}\n" in done.stdout.partition("PASSED")[2] + "\n"}


BOTH = {"test_library", "test_program"}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_what_passed_is_left_out_until_it_changes(checkout: Path, workers: tuple[str, ...]) -> None:
    assert ran(checkout, *workers) == BOTH
    assert ran(checkout, *workers) == {"test_program"}
    assert ran(checkout, *workers, CI="true") == BOTH
    assert ran(checkout, *workers, CACHEKEEP_TEST_ALL="1") == BOTH
    assert ran(checkout, *workers, TESTS) == {"test_library"}, "it was asked for by name"
    (checkout / LIBRARY / "src/cachekeep_patterns/aside.py").write_text("x = 2\n")
    assert ran(checkout, *workers) == BOTH


def test_what_failed_or_was_not_run_whole_is_not_left_out(checkout: Path) -> None:
    assert ran(checkout, "-k", "library") == {"test_library"}
    assert ran(checkout) == BOTH
    (checkout / f"{TESTS}/test_more.py").write_text("def test_more(): assert 0\n")
    assert ran(checkout) == BOTH
    assert ran(checkout) == BOTH
