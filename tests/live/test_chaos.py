"""``cachekeep chaos`` as a user runs it: the command, on a cache of one's own, and what it reports."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import valkey
from click.testing import CliRunner
from tests.acceptance.installation import COMMAND, Installation, available, created, eventually

from cachekeep.chaos.cuts import unusable
from cachekeep.chaos.harm import tag_of
from cachekeep.chaos.probe import Writer
from cachekeep.cli.chaos import _PROBE, _kept_seconds, _tag
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


def report(one: Installation, kind: str) -> dict[str, Any]:
    """The newest of that kind."""
    newest = max((one.data_dir / "reports").glob(f"chaos-*-{kind}.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, Any] = json.loads(newest.read_text())
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


@pytest.fixture(scope="module")
def shards(installation: Installation) -> dict[str, list[dict[str, Any]]]:
    """A cluster of two shards: its nodes by shard, primaries first."""
    client = installation.client()
    client.create_replication_group(
        ReplicationGroupId="wide",
        ReplicationGroupDescription="wide",
        Engine="valkey",
        CacheNodeType="cache.t3.micro",
        NumNodeGroups=2,
        ReplicasPerNodeGroup=1,
        AutomaticFailoverEnabled=True,
        CacheParameterGroupName="default.valkey8.cluster.on",
        EngineVersion="8.0",
    )
    available(client, "wide")
    seen = eventually(lambda: (s := installation.status("wide")) and all(n["status"] == "available" for n in s["nodes"]) and s)
    found: dict[str, list[dict[str, Any]]] = {}
    for node in sorted(seen["nodes"], key=lambda n: str(n["role"] != "primary")):
        found.setdefault(node["shard"], []).append(node)
    return found


def test_the_probe_writes_to_the_shard_that_is_harmed(installation: Installation, shards: dict[str, list[dict[str, Any]]]) -> None:
    """The probe's keys are the second shard's; another shard's node, when asked for them, sends on, and nothing is called lost."""
    cache = installation.status("wide")
    node = shards["0002"][0]
    where = [(n[0]["endpoint"].rpartition(":")[0], int(n[0]["endpoint"].rpartition(":")[2])) for n in shards.values()]
    probe = Writer(where[0], prefix=f"p:{{{_tag(cache, node)}}}")
    try:
        eventually(lambda: probe.count >= 10)
    finally:
        probe.stop()
    assert probe.last_error.startswith("-MOVED"), "the first shard has sent it on"
    assert f"{where[1][0]}:{where[1][1]}" in probe.last_error
    assert probe.missing(*where[0]) == probe.missing(*where[1]) == []


def test_a_shard_of_a_cluster_is_harmed_and_the_report_says_which(
    installation: Installation, shards: dict[str, list[dict[str, Any]]]
) -> None:
    before, replica = (n["name"] for n in shards["0002"])
    untouched = {name: _probe_keys(nodes[-1]) for name, nodes in shards.items()}
    done = installation.run("chaos", "kill-node", "wide", "--node", before, "--for", "3s", "--yes")
    seen = report(installation, "kill-node")
    assert (seen["cache"], seen["shard"], seen["primary_before"], seen["primary_after"]) == ("wide", "0002", before, replica)
    assert seen["writes_again"] is True
    written = {name: _probe_keys(nodes[-1]) - untouched[name] for name, nodes in shards.items()}
    assert written["0001"] == set()
    assert written["0002"], "the probe wrote to the shard that was harmed"
    assert isinstance(seen["lost"], int)
    assert seen["lost"] < 100, "all but what was on the wire is there"
    assert f"kill-node {before} (shard 0002)" in done.stdout


def _probe_keys(node: dict[str, Any]) -> set[bytes]:
    """The probe's keys that one node holds."""
    host, _, port = node["endpoint"].rpartition(":")
    with valkey.Valkey(host=host, port=int(port)) as client:
        return set(client.scan_iter(f"{_PROBE}:*"))


def test_a_replica_that_stays_away_is_not_mistaken_for_an_outage(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("cachekeep.cli.chaos")
    monkeypatch.setattr(module, "_whole", lambda settings, name: False)
    monkeypatch.setattr(module, "_RECOVERY_SECONDS", 0.2)
    done = CliRunner().invoke(
        module.chaos, ["hang-node", "alone", "--for", "100ms", "--yes", "--data-dir", str(installation.data_dir)]
    )
    assert done.exit_code == 0, done.output
    assert "cannot write yet" not in done.output
    assert "not all nodes are back yet" in done.output
    seen = report(installation, "hang-node")
    assert (seen["writes_again"], seen["recovered_after_seconds"], seen["lost"]) == (True, None, 0)


def test_its_keys_outlast_the_harm(installation: Installation) -> None:
    installation.run("chaos", "hang-node", "alone", "--for", "100ms", "--yes")
    node = installation.status("alone")["nodes"][0]["endpoint"]
    with valkey.Valkey(host=node.rpartition(":")[0], port=int(node.rpartition(":")[2])) as client:
        newest = max(client.ttl(key) for key in client.scan_iter(f"{_PROBE}:*"))
    assert 200 < newest <= _kept_seconds(0.1)
    assert _kept_seconds(360) > 360 + 120 + 30


def test_it_asks_before_it_hurts(installation: Installation) -> None:
    whole(installation)
    pids = installation.pids()
    done = installation.run("chaos", "kill-node", "demo", input="n\n", check=False)
    assert done.returncode != 0
    assert "(SIGKILL) for 10 s" in done.stdout
    assert installation.pids() == pids


def test_a_cache_with_users_is_harmed_as_one_of_them(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    client, password = installation.client(), "a-password-of-16-or-more"
    lock = {"Engine": "valkey", "AccessString": "on ~* +@all", "Passwords": [password]}
    client.create_user(UserId="prober", UserName="prober", **lock)
    client.create_user_group(UserGroupId="probers", Engine="valkey", UserIds=["prober"])
    created(client, "shut", NumCacheClusters=1, UserGroupIds=["probers"])
    kept = installation.environment()
    refused = installation.run("chaos", "hang-node", "shut", "--for", "100ms", "--yes", check=False)
    assert refused.returncode == 1
    for words in ("NOAUTH Authentication required. Name", "--user", "$CACHEKEEP_PASSWORD", "Nothing was harmed"):
        assert words in refused.stderr
    monkeypatch.setattr(installation, "environment", lambda: kept | {"CACHEKEEP_PASSWORD": password})
    done = installation.run("chaos", "hang-node", "shut", "--for", "100ms", "--user", "prober", "--yes")
    assert report(installation, "hang-node")["writes_again"] is True
    assert password not in done.stdout + done.stderr


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
        chaos.wait(timeout=60)
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
