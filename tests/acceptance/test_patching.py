"""A newer build is installed: it is told of as a service update, and applied while the cache serves."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import valkey
from tests.acceptance.installation import Installation, available, created, eventually


def _newer_build(place: Path) -> None:
    """The machine's own server under another version: what is tried is how nodes come to it."""
    real = shutil.which("valkey-server")
    if real is None:
        pytest.skip("needs valkey-server")
    program = place / "valkey-server"
    place.mkdir(parents=True)
    said = "Valkey server v=8.0.99 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{said}"; exit; }}\nexec {real} "$@"\n')
    program.chmod(0o755)


def _roles(client: Any) -> dict[str, str]:
    (shard,) = available(client, "demo")["NodeGroups"]
    return {member["CacheClusterId"]: member["CurrentRole"] for member in shard["NodeGroupMembers"]}


def test_a_newer_build_is_told_of_and_applied_without_losing_a_write(another: Callable[..., Installation]) -> None:
    one = another().up()
    client = one.client()
    where = created(
        client, "demo", NumCacheClusters=2, EngineVersion="8.0", AutomaticFailoverEnabled=True, AutoMinorVersionUpgrade=False
    )["NodeGroups"][0]["PrimaryEndpoint"]
    before = one.pids()
    assert client.describe_service_updates()["ServiceUpdates"] == []
    one.kill()
    _newer_build(one.data_dir / "engines" / "valkey-8.0.99")
    client = one.up().client()
    (update,) = eventually(lambda: client.describe_service_updates()["ServiceUpdates"], what="the update")
    assert (update["ServiceUpdateSeverity"], update["EngineVersion"]) == ("critical", "8.0")
    (action,) = client.describe_update_actions()["UpdateActions"]
    assert (action["NodesUpdated"], action["UpdateActionStatus"]) == ("0/2", "not-applied")
    assert {name: one.pids()[name] for name in before} == before, "whoever only looks restarts nobody"

    acknowledged: list[int] = []
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            try:
                valkey.Valkey(where["Address"], where["Port"], socket_timeout=5).set(f"k{number}", number)
                acknowledged.append(number)
            except valkey.ValkeyError:
                continue

    writer = threading.Thread(target=write)
    writer.start()
    try:
        old_roles = _roles(client)
        client.batch_apply_update_action(ServiceUpdateName=update["ServiceUpdateName"], ReplicationGroupIds=["demo"])
        eventually(
            lambda: client.describe_update_actions()["UpdateActions"][0]["UpdateActionStatus"] == "complete",
            seconds=120,
            what="both nodes run the newer build",
        )
        assert _roles(client) == {name: "replica" if role == "primary" else "primary" for name, role in old_roles.items()}
    finally:
        over.set()
        writer.join()
    assert acknowledged
    kept = valkey.Valkey(where["Address"], where["Port"], decode_responses=True)
    assert [n for n in acknowledged if kept.get(f"k{n}") != str(n)] == []
    programs = {name: record.program for name, record in one.records().items() if name.startswith("demo-")}
    assert set(programs.values()) == {"valkey-8.0.99+tls"}
