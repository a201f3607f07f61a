"""The guide's examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from patterns_rig.servers import Server

EXAMPLES = Path(__file__).parents[3] / "docs" / "guide" / "examples"
SAID = {
    "patterns_topology.py": "every write was read back",
    "patterns_lazy_loading.py": "50 callers, 1 load",
    "patterns_writing.py": "after the commit: Grace [('Grace',)]\n"
    "written through by hand: Emmy - PUBLISHED\n"
    "written through its function: Hedy\n",
    "patterns_near_cache.py": "another writer's value was seen",
    "patterns_small.py": "[{'receipt': 7}, {'receipt': 7}]",
}


@pytest.mark.parametrize("name", SAID)
def test_example(server: Server, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), f"valkey://127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        env={**os.environ, "ROUNDS": "5"},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
