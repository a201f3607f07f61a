"""The distribution by itself: what is in its wheel, what that needs, and what type checkers make of it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(into)], cwd=PACKAGE, check=True, capture_output=True)
    return next(into.glob("*.whl"))


def test_the_wheel_has_all_of_the_package_and_needs_two(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        metadata = Parser().parsestr(held.read(next(name for name in names if name.endswith("/METADATA"))).decode())
    source = PACKAGE / "src"
    assert names >= {str(path.relative_to(source)) for path in source.rglob("*.py")} | {"cachekeep_patterns/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    needed = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert sorted(re.match(r"[\w-]+", text).group() for text in needed) == ["msgspec", "valkey"]  # type: ignore[union-attr]
    assert metadata["Requires-Python"] == ">=3.10"


def test_it_works_from_the_wheel_without_deprecated_ways(wheel: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import cachekeep_patterns as p; assert '.whl' in p.__file__;"
        "[getattr(p, name) for name in p.__all__]; cache = p.Cache(p.MemoryStore());"
        "print(cache.get('k', lambda: 1), cache.get('k', lambda: 2), cache.counters.snapshot()['hits'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1 1 1\n", done.stderr


@pytest.mark.parametrize("program", ["good.py", "bad.py"])
def test_the_type_checker_takes_good_programs_and_refuses_bad_ones(program: str) -> None:
    path = PACKAGE / "tests" / "typing_programs" / program
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--config-file=", str(path)]
    environment = {"MYPYPATH": str(PACKAGE / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=PACKAGE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
