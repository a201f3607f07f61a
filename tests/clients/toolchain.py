"""Clients of other languages: installed or compiled once for what their lock files say, and kept for the next run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

SLOW = "CACHEKEEP_TEST_SLOW"
HERE = Path(__file__).parent

slow = pytest.mark.skipif(not os.environ.get(SLOW), reason=f"slow: set {SLOW}=1")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where a program is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed: {' and '.join(programs)} (another toolchain's client; nothing of ours)"
    )


def made_once(name: str, inputs: Mapping[str, bytes], make: Callable[[Path], None]) -> Path:
    """A directory with ``inputs`` in it as files, completed by ``make``; the same one as long as the inputs are the same.

    It is made aside and then renamed: a half-made one is never used, and two runs at once make it once.
    """
    store = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachekeep-tests"
    store.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(sorted(inputs.items())).encode()).hexdigest()[:16]
    made = store / f"{name}-{digest}"
    with (store / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            aside = Path(tempfile.mkdtemp(prefix=f"{name}-making-", dir=store))
            try:
                for file, content in inputs.items():
                    (aside / file).write_bytes(content)
                make(aside)
                aside.rename(made)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    return made


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    """What a command prints; fails with everything that it printed."""
    whole = dict(os.environ if env is None else env)
    try:
        done = subprocess.run(command, cwd=cwd, env=whole, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{command[0]} was not done after {seconds} s\n{_text(late.stdout)}\n{_text(late.stderr)}")
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{_text(done.stdout)}\n{_text(done.stderr)}"
    return _text(done.stdout)


def _text(printed: bytes | None) -> str:
    return (printed or b"").decode(errors="replace")
