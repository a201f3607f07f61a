"""Rules for every test here."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

NO_SKIP = "CACHEKEEP_TEST_NO_SKIP"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background jobs ignore interrupts, and so would every program that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples every time, however slow the machine is.
settings.register_profile("suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is said to be installed, a skip that begins with ``needs`` is a failure: what it needs is not there.

    A test that lacks a program or a right skips with ``needs PROGRAM`` or ``needs root``; CI sets CACHEKEEP_TEST_NO_SKIP.
    """
    report = yield
    if os.environ.get(NO_SKIP) and report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if reason.startswith("needs "):
            report.outcome = "failed"
            report.longrepr = f"skipped where nothing may be ({NO_SKIP} is set): {reason}"
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for a whole module that skips itself."""
    if os.environ.get(NO_SKIP) and report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if reason.startswith("needs "):
            pytest.exit(f"{report.nodeid} skipped where nothing may be ({NO_SKIP} is set): {reason}", returncode=1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What Cachekeep runs on. Clients that are installed for the tests bring other event loops with them."""
    return "asyncio"
