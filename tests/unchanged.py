"""The client library's tests, left out where nothing of theirs has changed since they passed on this machine.

The library imports nothing of the program, so only its own files, its tests', the lock and the servers it speaks to can change what
they find. When all have passed, the digest of all that is written down outside the checkout; a run of the whole suite that finds
the same digest leaves them out and says so. CI runs them always, and so does whoever names them or sets CACHEKEEP_TEST_ALL.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ALL, _LEFT_OUT = "CACHEKEEP_TEST_ALL", "CACHEKEEP_TEST_LEAVES_OUT"
LIBRARY = "packages/cachekeep-patterns"
TESTS = f"{LIBRARY}/tests"
INPUTS = (LIBRARY, "tests/addresses.py", "tests/rules.py", "docs/guide", "examples", "requirements/dev.lock")
SERVERS = ("valkey-server", "redis-server", "memcached", "postgres")


def digest(root: Path) -> str:
    """Of everything that can change what the tests find."""
    whole = hashlib.sha256(sys.version.encode())
    for path in sorted(path for part in INPUTS for path in _files(root / part)):
        whole.update(b"%b\0%b\0" % (str(path.relative_to(root)).encode(), hashlib.sha256(path.read_bytes()).digest()))
    for name in SERVERS:
        if found := shutil.which(name):
            seen = os.stat(found)
            whole.update(f"{found} {seen.st_size} {seen.st_mtime_ns}".encode())
    return whole.hexdigest()


def _files(part: Path) -> Iterable[Path]:
    if part.is_file():
        return [part]
    return (path for path in part.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def stamp(root: Path) -> Path:
    """The file that is there if they have passed as they are."""
    store = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachekeep-tests"
    return store / f"patterns-passed-{digest(root)[:32]}"


class Unchanged:
    """What one run leaves out, or finds out about the client library."""

    def __init__(self, config: pytest.Config) -> None:
        self.stamp = stamp(config.rootpath)
        everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        self.leaves_out = everything and not os.environ.get("CI") and not os.environ.get(ALL) and self.stamp.exists()
        chosen = any(getattr(config.option, name, None) for name in ("keyword", "markexpr", "deselect", "lf", "collectonly"))
        self.whole = not self.leaves_out and not chosen and (everything or TESTS in (arg.rstrip("/") for arg in config.args))
        self.passed = self.failed = 0
        if self.leaves_out:
            os.environ[_LEFT_OUT] = "1"  # for the workers

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.leaves_out:
            terminalreporter.write_line(f"{TESTS} is left out: unchanged since it passed here ({ALL}=1 runs it)")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid.startswith(f"{TESTS}/"):
            self.passed += report.passed and report.when == "call"
            self.failed += report.failed

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.whole and exitstatus in (0, 1) and not session.shouldfail and self.passed and not self.failed:
            self.stamp.parent.mkdir(parents=True, exist_ok=True)
            self.stamp.touch()

    def pytest_unconfigure(self) -> None:
        os.environ.pop(_LEFT_OUT, None)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Unchanged(config))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if os.environ.get(_LEFT_OUT) and config.rootpath / TESTS in collection_path.parents else None
