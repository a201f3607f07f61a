"""Which worker runs what: each begins with a fair share of the slow files, so that the end is quick tests, easily shared.

pytest-xdist gives every worker a run of the list, equally long, and lets who is done take from the end of another's. So slow files
stand at the beginning of each run, dealt out like cards; quick tests fill up the rest.
"""

from __future__ import annotations

import os
from itertools import groupby

import pytest

SLOW = (
    "tests/interrupt/test_cluster_interrupt.py",
    "packages/cachekeep-patterns/tests/sessions/",
    "tests/sim/test_guards.py",
    "tests/live/test_failover.py",
    "tests/clients/",
    "tests/live/test_cluster",
    "tests/interrupt/",
    "tests/sim/",
    "tests/live/",
    "tests/acceptance/",
    "tests/cli/",
    "packages/cachekeep-patterns/tests/",
    "tests/contract/",
    "tests/store/",
    "tests/network/",
    "tests/toolchain/",
)
"""Beginnings of paths, the slowest first."""


def rank(path: str) -> int:
    return next((at for at, slow in enumerate(SLOW) if path.startswith(slow)), len(SLOW))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if workers:
        items[:] = dealt(items, workers)


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The same items, file by file, for so many workers."""
    files = [(rank(path), list(tests)) for path, tests in groupby(items, key=lambda item: item.nodeid.partition("::")[0])]
    slow = sorted((file for file in files if file[0] < len(SLOW)), key=lambda file: (file[0], -len(file[1])))
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for at, (_, tests) in enumerate(slow):
        turn = at % (2 * workers)  # there and back again, so that the first one does not get the slowest of every round
        shares[turn if turn < workers else 2 * workers - 1 - turn] += tests
    quick = [item for at, tests in files if at == len(SLOW) for item in tests]
    for number, share in enumerate(shares):
        size = len(items) // workers + (number >= workers - len(items) % workers)
        room = max(0, size - len(share))
        share += quick[:room]
        del quick[:room]
    return [item for share in shares for item in share] + quick
