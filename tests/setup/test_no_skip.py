"""In CI a test that skips for lack of something must not pass for a test that ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"


def run(directory: Path, body: str, no_skip: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(CONFTEST.read_text())
    (directory / "test_it.py").write_text("import pytest\n" + body)
    (directory / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "CACHEKEEP_TEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=directory,
        env=environment | {"CACHEKEEP_TEST_NO_SKIP": no_skip},
        capture_output=True,
        text=True,
        check=False,
    )


SKIPS = {
    "in a test": "def test_one():\n    pytest.skip('needs valkey-server')\n",
    "in a fixture": "@pytest.fixture\ndef engine():\n    pytest.skip('needs root')\ndef test_one(engine): pass\n",
    "by a mark": "@pytest.mark.skipif(True, reason='needs root')\ndef test_one(): pass\n",
    "of a module": "pytest.skip('needs nft', allow_module_level=True)\n",
}


@pytest.mark.parametrize("body", SKIPS.values(), ids=SKIPS.keys())
def test_a_skip_for_want_of_something_fails_only_where_nothing_may_be_missing(tmp_path: Path, body: str) -> None:
    strict = run(tmp_path, body, "1")
    assert strict.returncode == 1, strict.stdout
    assert "needs" in strict.stdout
    relaxed = run(tmp_path, body + "\ndef test_two(): pass\n", "")
    assert relaxed.returncode in (0, 5), relaxed.stdout  # 5: a module that skipped itself has no tests


def test_a_skip_for_another_reason_stays_a_skip(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_one():\n    pytest.skip('only on other platforms')\n", "1")
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
