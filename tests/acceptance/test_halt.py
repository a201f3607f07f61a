"""The control plane is halted (SIGSTOP) for longer than its leases live, and goes on (SIGCONT) with what it knew."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import valkey
from tests.acceptance.installation import Installation, available, created, eventually, kill

from cachekeep.control.workers import LEASE_SECONDS

HALT_SECONDS = LEASE_SECONDS + 1.0


def test_a_halted_control_plane_goes_on_and_harms_nobody(another: Callable[..., Installation]) -> None:
    """Nothing that it missed is held against a node. Of a primary that died meanwhile nobody knows what it acknowledged after it
    was last heard: its user is asked (decision 35), and his word is enough."""
    one = another().up()
    client = one.client()
    where = created(client, "calm", AutomaticFailoverEnabled=True)["NodeGroups"][0]["PrimaryEndpoint"]
    created(client, "struck", NumCacheClusters=2, AutomaticFailoverEnabled=True)
    clients = valkey.Valkey(where["Address"], where["Port"], decode_responses=True)
    before = one.pids()
    assert one.process is not None
    os.kill(one.process.pid, signal.SIGSTOP)
    try:
        kill(before["struck-001"])
        until, written = time.monotonic() + HALT_SECONDS, 0
        while time.monotonic() < until:  # engines serve all the while
            written += 1
            clients.set("written", written)
            time.sleep(0.01)
    finally:
        os.kill(one.process.pid, signal.SIGCONT)

    def roles() -> dict[str, str]:
        return {n["name"]: n["role"] for n in one.status("struck")["nodes"] if n["in_sync"] or n["role"] == "primary"}

    eventually(lambda: "--allow-data-loss" in one.status("struck")["because"], what="the refusal")
    assert "cannot be shown to have what struck-001 acknowledged" in one.status("struck")["because"]
    one.run("failover", "struck", "--allow-data-loss")
    eventually(lambda: roles() == {"struck-001": "replica", "struck-002": "primary"}, what="the failover that was missed")
    available(client, "calm")
    assert int(clients.get("written") or 0) == written
    after = one.pids()
    assert {n: after[n] for n in before if n.startswith("calm")} == {n: p for n, p in before.items() if n.startswith("calm")}
    told = [
        e["Message"] for e in client.describe_events(Duration=60, SourceIdentifier="calm", SourceType="replication-group")["Events"]
    ]
    assert not any("ailover" in message for message in told), told
