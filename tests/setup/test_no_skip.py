"""In CI a test that skips for lack of something must not pass for a test that ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RULES = Path(__file__).parent.parent / "rules.py"
SKIPS = """
import pytest

def test_in_a_test():
    pytest.skip("needs valkey-server")

@pytest.fixture
def engine():
    pytest.skip("needs root")

def test_in_a_fixture(engine): pass

@pytest.mark.skipif(True, reason="needs root")
def test_by_a_mark(): pass

def test_for_another_reason():
    pytest.skip("only on other platforms")
"""
MODULE_SKIPS = "import pytest\npytest.skip('needs nft', allow_module_level=True)\n"


def run(directory: Path, body: str, no_skip: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(RULES.read_text())
    (directory / "test_it.py").write_text(body)
    (directory / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "CACHEKEEP_TEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=directory,
        env=environment | {"CACHEKEEP_TEST_NO_SKIP": no_skip, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_skip_for_want_of_something_fails_where_nothing_may_be_missing(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPS, "1")
    assert "1 failed, 1 skipped, 2 errors" in done.stdout, done.stdout
    assert done.returncode == 1
    assert "CACHEKEEP_TEST_NO_SKIP is set): needs valkey-server" in done.stdout


@pytest.mark.parametrize(("no_skip", "code"), [("1", 1), ("", 5)])
def test_nor_may_a_whole_module(tmp_path: Path, no_skip: str, code: int) -> None:
    assert run(tmp_path, MODULE_SKIPS, no_skip).returncode == code


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPS, "")
    assert (done.returncode, "4 skipped" in done.stdout) == (0, True), done.stdout
