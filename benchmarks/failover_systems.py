"""What is compared: a replication group of ours, and the same engine kept by three Sentinels. Both are harmed in the same ways."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Literal, Protocol

import valkey
from tests.acceptance.installation import Installation, created
from tests.addresses import new_pool

from cachekeep.chaos.cuts import Cuts
from cachekeep.cli.client import call, published
from cachekeep.engines.catalogue import Build
from cachekeep.settings import Settings

Kind = Literal["crash", "hang", "cut", "planned"]
PORT = 6379
REPLICAS = 2
_SETTLE_SECONDS = 90.0


class System(Protocol):
    """Something that keeps a primary and two replicas."""

    name: str
    trust: str
    """Clients come by TLS, to one that these authorities call by the address; empty: without."""

    def where(self) -> tuple[str, int]:
        """Where a client that has to connect anew goes."""

    def harm(self, kind: Kind) -> float:
        """Do harm to the primary; the moment (``time.time()``) at which it was done."""

    def moved(self) -> bool:
        """Whether another node leads than when harm was done."""

    def settle(self) -> None:
        """Undo what is left of the harm; return when the primary has all its replicas again."""

    def told(self, since: float) -> tuple[float | None, float | None]:
        """Seconds from ``since`` until the loss was known, and until the next primary was known to lead, as it has said itself."""

    def close(self) -> None:
        """End everything."""


def _until(met, what: str, seconds: float = _SETTLE_SECONDS) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


class Ours:
    """A group of 1 + 2 behind ``cachekeep up``, with its database, as users have it."""

    def __init__(self, place: Path, build: Build, *, tls: bool = False, closed: bool = False) -> None:
        """``closed``: in a security group that lets nobody in but root."""
        self.name = "Cachekeep, TLS" if tls else "Cachekeep"
        self._installation = Installation(place, "--log-format", "json").up()
        self._settings = Settings(data_dir=self._installation.data_dir)
        self._client = self._installation.client()
        version = ".".join(build.version.split(".")[:2])
        asked: dict[str, object] = {
            "Engine": build.engine,
            "EngineVersion": version,
            "AutomaticFailoverEnabled": True,
            "TransitEncryptionEnabled": tls,
        }
        if closed:
            made = self._installation.client("ec2").create_security_group(GroupName="bench", Description="d")
            asked["SecurityGroupIds"] = [made["GroupId"]]
        group = created(self._client, "bench", **asked)
        self.trust = published(self._settings) if tls else ""
        self._endpoint = group["NodeGroups"][0]["PrimaryEndpoint"]["Address"]
        self._cuts: Cuts | None = None
        self._lifted: threading.Thread | None = None
        self._was = ""
        self.settle()

    @property
    def data_dir(self) -> Path:
        return self._installation.data_dir

    def where(self) -> tuple[str, int]:
        return self._endpoint, PORT

    def _status(self):  # type: ignore[no-untyped-def]
        return call(self._settings, "status", name="bench")["caches"][0]

    def _primary(self) -> str | None:
        """None while the control plane has not told of what it has just decided."""
        return next((str(n["name"]) for n in self._status()["nodes"] if n.get("role") == "primary"), None)

    def harm(self, kind: Kind) -> float:
        _until(lambda: self._primary() is not None, "somebody is told to lead")
        self._was = self._primary() or ""
        record = self._installation.records()[self._was]
        at = time.time()
        match kind:
            case "crash":
                os.kill(record.pid, signal.SIGKILL)
            case "hang":
                os.kill(record.pid, signal.SIGSTOP)
            case "cut":
                self._cut(record.pid, record.address)
            case "planned":
                self._client.test_failover(ReplicationGroupId="bench", NodeGroupId="0001")
        return at

    def _cut(self, pid: int, address: str) -> None:
        """Its host is gone, with the endpoint's address; that is back as soon as the process is: then no host has it any more."""
        self._cuts = self._cuts or Cuts(f"bench{os.getpid()}")
        self._cuts.open()
        pidfd = os.pidfd_open(pid)
        self._cuts.cut([address, self._endpoint])

        def lift() -> None:
            select.select([pidfd], [], [], _SETTLE_SECONDS)
            os.close(pidfd)
            if self._cuts is not None:
                self._cuts.heal([self._endpoint])

        self._lifted = threading.Thread(target=lift, daemon=True)
        self._lifted.start()

    def moved(self) -> bool:
        return self._primary() not in (self._was, None)

    def settle(self) -> None:
        if self._lifted is not None and self._cuts is not None:
            self._lifted.join()
            self._cuts.open()

        def whole() -> bool:
            seen = self._status()
            nodes = seen["nodes"]
            return (
                seen["status"] == "available"
                and sum(bool(n.get("in_sync")) for n in nodes) == REPLICAS
                and all(n["status"] == "available" for n in nodes)
            )

        _until(whole, "all replicas in sync")

    def told(self, since: float) -> tuple[float | None, float | None]:
        known: float | None = None
        for line in self._installation.log.read_text().splitlines()[-400:]:
            with contextlib.suppress(ValueError, KeyError):
                fact = json.loads(line)
                at = dt.datetime.fromisoformat(fact["at"]).timestamp() - since
                said = fact["message"]
                if at < -0.001 or "decide" not in said:
                    continue
                if known is None and (" is gone: " in said or "stopped for certain" in said or "becomes primary" in said):
                    known = at
                if "in place of" in said or "has handed over" in said:
                    return known, at
        return known, None

    def close(self) -> None:
        if self._cuts is not None:
            self._cuts.clear()
        self._installation.close()


_sentinels = itertools.count()


class Sentinel:
    """Three Sentinels with quorum 2 over a primary and two replicas, all on addresses of their own. Whatever was harmed is brought
    back at once and told to follow, which Sentinel itself does only after a while."""

    def __init__(self, place: Path, build: Build, *, down_after_ms: int, failover_timeout_ms: int, name: str) -> None:
        self.name = name
        self.trust = ""
        self._place, self._build = place, build
        base = new_pool().rpartition(".")[0] if next(_sentinels) >= 0 else ""
        self._nodes = [f"{base}.{i}" for i in (1, 2, 3)]
        self._guards = [f"{base}.{i}" for i in (11, 12, 13)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cuts: Cuts | None = None
        for address in self._nodes:
            self._start(address, None if address == self._nodes[0] else self._nodes[0])
        _until(lambda: self._replicas_online(self._nodes[0]), "replication")
        for address in self._guards:
            self._guard(address, down_after_ms, failover_timeout_ms)
        self._was = self._nodes[0]
        _until(self._agreed, "the Sentinels know each other and all replicas")

    def _start(self, address: str, follows: str | None) -> None:
        directory = self._place / address
        directory.mkdir(parents=True, exist_ok=True)
        options = ["--bind", address, "--bind-source-addr", address, "--port", str(PORT), "--dir", str(directory)]
        options += ["--protected-mode", "no", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        options += ["--replica-announce-ip", address]
        if follows:
            options += ["--replicaof", f"{follows} {PORT}"]
        self._run(address, [self._build.server, *options])

    def _guard(self, address: str, down_after_ms: int, failover_timeout_ms: int) -> None:
        directory = self._place / address
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "sentinel.conf"
        config.write_text(
            f"bind {address}\nbind-source-addr {address}\nport 26379\ndir {directory}\nprotected-mode no\n"
            f"sentinel announce-ip {address}\n"
            f"sentinel monitor bench {self._nodes[0]} {PORT} 2\n"
            f"sentinel down-after-milliseconds bench {down_after_ms}\n"
            f"sentinel failover-timeout bench {failover_timeout_ms}\n"
            "sentinel parallel-syncs bench 2\n"
        )
        self._run(address, [self._build.server, str(config), "--sentinel"])

    def _run(self, address: str, argv: list[str]) -> None:
        with (self._place / address / "log").open("ab") as log:
            self._processes[address] = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    # -- what Sentinel says

    def where(self) -> tuple[str, int]:
        """As Sentinel's clients do: ask one Sentinel after the other for the primary's address."""
        for guard in self._guards:
            with contextlib.suppress(OSError, IndexError), socket.create_connection((guard, 26379), timeout=0.25) as line:
                line.sendall(b"SENTINEL get-master-addr-by-name bench\r\n")
                words = line.recv(4096).split(b"\r\n")
                return words[2].decode(), int(words[4])
        raise OSError("no Sentinel answers")

    def _ask(self, address: str, *command: object, port: int = PORT):  # type: ignore[no-untyped-def]
        with valkey.Valkey(host=address, port=port, socket_timeout=2, decode_responses=True) as client:
            return client.execute_command(*command)

    def _replicas_online(self, primary: str) -> bool:
        try:
            told = self._ask(primary, "INFO", "replication")
        except valkey.ValkeyError:
            return False
        online = [v for k, v in told.items() if k.startswith("slave") and isinstance(v, dict) and v["state"] == "online"]
        return len(online) == REPLICAS

    def _agreed(self) -> bool:
        """All Sentinels see the same primary, the others and every replica, and nothing of it is down."""
        try:
            seen = [self._ask(g, "SENTINEL", "MASTER", "bench", port=26379) for g in self._guards]
            below = [self._ask(g, "SENTINEL", "REPLICAS", "bench", port=26379) for g in self._guards]
        except valkey.ValkeyError:
            return False
        good = all(
            s["num-other-sentinels"] in (2, "2") and s["num-slaves"] in (2, "2") and not s["is_sdown"] for s in map(_flat, seen)
        )
        calm = all(not r["is_sdown"] and r["master-link-status"] == "ok" for rows in below for r in map(_flat, rows))
        return good and calm and len({_flat(s)["ip"] for s in seen}) == 1 and self._replicas_online(_flat(seen[0])["ip"])

    # -- harm

    def harm(self, kind: Kind) -> float:
        self._was = self.where()[0]
        pid = self._processes[self._was].pid
        at = time.time()
        match kind:
            case "crash":
                os.kill(pid, signal.SIGKILL)
            case "hang":
                os.kill(pid, signal.SIGSTOP)
            case "cut":
                self._cuts = self._cuts or Cuts(f"rival{os.getpid()}")
                self._cuts.open()
                self._cuts.cut([self._was])
            case "planned":
                self._ask(self._guards[0], "SENTINEL", "FAILOVER", "bench", port=26379)
        return at

    def moved(self) -> bool:
        with contextlib.suppress(OSError):
            return self.where()[0] != self._was
        return False

    def settle(self) -> None:
        if self._cuts is not None:
            self._cuts.open()
        process = self._processes[self._was]
        primary = self.where()[0]
        if process.poll() is not None:
            self._start(self._was, primary)
        else:
            process.send_signal(signal.SIGCONT)
            with contextlib.suppress(valkey.ValkeyError):
                self._ask(self._was, "REPLICAOF", primary, PORT)
        _until(self._agreed, f"{self.name} is whole again")

    def told(self, since: float) -> tuple[float | None, float | None]:
        known = led = None
        for guard in self._guards:
            for line in (self._place / guard / "log").read_text(errors="replace").splitlines()[-200:]:
                found = re.match(r"\d+:\w (\d+ \w+ \d+ \d+:\d+:\d+\.\d+) \S (\+odown master|\+switch-master)", line)
                if not found:
                    continue
                at = dt.datetime.strptime(found[1], "%d %b %Y %H:%M:%S.%f").timestamp() - since
                if at < -0.001:
                    continue
                if found[2].startswith("+odown"):
                    known = min(known or at, at)
                else:
                    led = min(led or at, at)
        return known, led

    def close(self) -> None:
        if self._cuts is not None:
            self._cuts.clear()
        for process in self._processes.values():
            process.kill()
            process.wait()


def _flat(told):  # type: ignore[no-untyped-def]
    """A Sentinel's reply as a dictionary, whether or not the client made one of it."""
    if isinstance(told, dict):
        found = dict(told)
    else:
        found = dict(zip(told[::2], told[1::2], strict=True))
    found.setdefault("is_sdown", "down" in found.get("flags", ""))
    return found
