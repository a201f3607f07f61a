"""``cachekeep chaos`` as a user runs it: the command, on a cache of one's own, and what it reports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.installation import COMMAND, Installation, created, eventually

from cachekeep.chaos.cuts import unusable
from cachekeep.chaos.harm import tag_of
from cachekeep.compute.local import proc

needs_cuts = pytest.mark.skipif(unusable() is not None, reason=unusable() or "")
has_valkey = shutil.which("valkey-server") is not None
pytestmark = pytest.mark.skipif(not has_valkey, reason="needs valkey-server")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    one = Installation(tmp_path_factory.mktemp("chaos"))
    try:
        one.up()
        created(one.client(), "demo", AutomaticFailoverEnabled=True, MultiAZEnabled=True)
        created(one.client(), "alone", NumCacheClusters=1)
        yield one
    finally:
        one.close()


def report(one: Installation, kind: str) -> dict[str, object]:
    """The newest of that kind."""
    newest = max((one.data_dir / "reports").glob(f"chaos-*-{kind}.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, object] = json.loads(newest.read_text())
    return found


def primary(one: Installation) -> str:
    return str(eventually(lambda: next((n["name"] for n in one.status("demo")["nodes"] if n.get("role") == "primary"), None)))


def whole(one: Installation) -> None:
    eventually(lambda: sum(bool(n.get("in_sync")) for n in one.status("demo")["nodes"]) == 2, seconds=40, what="all in sync")


@pytest.mark.parametrize(
    "kind", ["kill-node", "hang-node", pytest.param("cut-node", marks=needs_cuts), pytest.param("cut-zone", marks=needs_cuts)]
)
def test_a_primary_is_harmed_and_the_report_says_what_a_client_felt(installation: Installation, kind: str) -> None:
    whole(installation)
    before = primary(installation)
    said = installation.run("chaos", kind, "demo", "--for", "3s", "--yes").stdout
    seen = report(installation, kind)
    assert (seen["cache"], seen["node"], seen["primary_before"]) == ("demo", before, before)
    assert seen["primary_after"] != before
    assert seen["writes_again"] is True
    assert isinstance(seen["lost"], int)
    assert isinstance(seen["acknowledged"], int)
    assert seen["lost"] < seen["acknowledged"]
    assert f"{seen['primary_after']} leads now" in said
    events = installation.client().describe_events(SourceType="replication-group", SourceIdentifier="demo", Duration=60)["Events"]
    assert any(e["Message"].startswith(f"Chaos: {kind} {before}") for e in events)
    if kind.startswith("cut"):
        assert tag_of(installation.data_dir) not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout


def test_it_asks_before_it_hurts(installation: Installation) -> None:
    whole(installation)
    pids = installation.pids()
    done = installation.run("chaos", "kill-node", "demo", input="n\n", check=False)
    assert done.returncode != 0
    assert "(SIGKILL) for 10 s" in done.stdout
    assert installation.pids() == pids


def test_a_disk_that_others_use_is_not_filled(installation: Installation) -> None:
    done = installation.run("chaos", "fill-disk", "demo", "--yes", check=False)
    assert done.returncode == 1
    assert "shares its filesystem" in done.stderr


def test_what_there_is_not_is_refused(installation: Installation) -> None:
    assert "no node demo-009" in installation.run("chaos", "kill-node", "demo", "--node", "demo-009", "--yes", check=False).stderr
    assert installation.run("chaos", "kill-node", "nobody", "--yes", check=False).returncode == 1


def test_a_frozen_node_thaws_when_the_command_is_interrupted(installation: Installation) -> None:
    """A cache of one node has no automatic failover: nobody else would thaw it."""
    pid = installation.pids()["alone-001"]
    command = [COMMAND, "chaos", "hang-node", "alone", "--for", "60s", "--yes"]
    with subprocess.Popen([*command, "--data-dir", str(installation.data_dir)], env=installation.environment()) as chaos:
        eventually(lambda: frozen(pid), what="it is frozen")
        chaos.send_signal(signal.SIGINT)
        chaos.wait(timeout=20)
    assert not frozen(pid)
    assert installation.pids()["alone-001"] == pid


def test_heal_undoes_what_a_killed_command_has_left(installation: Installation) -> None:
    pid = installation.pids()["alone-001"]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: frozen(pid))
    installation.run("chaos", "heal", "alone")
    assert not frozen(pid)


def frozen(pid: int) -> bool:
    seen = proc.stat(pid)
    return seen is not None and proc.process_of(seen.state) == "frozen"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_disk_of_its_own_is_survived(tmp_path: Path) -> None:
    """A filesystem for the nodes alone is filled: the primary serves on, and the space comes back."""
    one = Installation(tmp_path)
    nodes = one.data_dir / "nodes"
    nodes.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(nodes)], check=False).returncode == 0
    if not mounted:
        pytest.skip("needs mount")
    try:
        one.up()
        created(one.client(), "demo", AutomaticFailoverEnabled=True)
        one.run("chaos", "fill-disk", "demo", "--for", "1s", "--yes")
        seen = report(one, "fill-disk")
        assert seen["writes_again"] is True
        assert os.statvfs(nodes).f_bavail > 0
    finally:
        one.close()
        for _ in range(50):
            if subprocess.run(["umount", str(nodes)], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        with contextlib.suppress(OSError):
            nodes.rmdir()
