"""A Cachekeep of its own for tests: started by its command, driven by unmodified clients, ended with everything that it started."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import boto3
import msgspec
from botocore.config import Config
from tests.addresses import new_pool

from cachekeep.compute.local import proc
from cachekeep.compute.local.ledger import Record

COMMAND = Path(sys.executable).with_name("cachekeep")
AWS = Path(sys.executable).with_name("aws")
T = TypeVar("T")


def eventually(found: Callable[[], T], *, seconds: float = 60.0, what: str = "") -> T:
    """The first true answer; fails when there is none in time."""
    until = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < until, f"not within {seconds} s: {what or found}"
        time.sleep(0.01)


class Installation:
    """One data directory and what runs from it."""

    def __init__(self, place: Path, *options: str) -> None:
        self.data_dir = place / "data"
        self.pool = new_pool()
        self.options = options
        self.log = place / "log"
        self.process: subprocess.Popen[bytes] | None = None
        place.mkdir(parents=True, exist_ok=True)

    # -- the command

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CACHEKEEP_"))}
        return {**kept, "HOME": str(self.data_dir.parent), "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}

    def popen(self, *options: str) -> subprocess.Popen[bytes]:
        """``cachekeep up``, without waiting for it. Its port is free; the first one is kept, so that clients find it again."""
        port = self.endpoint().rpartition(":")[2] if self.endpoint() else "0"
        where = ("--data-dir", str(self.data_dir), "--port", port, "--address-pool", self.pool, "--linger-seconds", "1")
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [COMMAND, "up", *where, *self.options, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
            )

    def up(self) -> Installation:
        """Start it and wait until it answers."""
        self.process = process = self.popen()

        def answers() -> bool:
            assert process.poll() is None, f"it ended: {self.log.read_text()}"
            return self._is_ours(process.pid) and self.healthy()

        eventually(answers, what="cachekeep up")
        return self

    def healthy(self) -> bool:
        """Whether it answers requests."""
        try:
            trusting = ssl.create_default_context(cafile=self.data_dir / "ca.pem")
            with urllib.request.urlopen(f"{self.endpoint()}/_cachekeep/health", timeout=5, context=trusting) as answer:
                return bool(json.load(answer)["ok"])
        except OSError:
            return False

    def _is_ours(self, pid: int) -> bool:
        try:
            return bool(json.loads((self.data_dir / "endpoint.json").read_bytes())["pid"] == pid)
        except (OSError, ValueError):
            return False

    def run(self, command: str, *arguments: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Another ``cachekeep`` command on the same data directory."""
        done = subprocess.run(
            [COMMAND, command, "--data-dir", str(self.data_dir), *arguments],
            capture_output=True,
            text=True,
            input=input,
            env=self.environment(),
            timeout=180,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done

    def kill(self) -> None:
        """SIGKILL the control plane; gone on return."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End everything that was started from here."""
        if self.data_dir.is_dir():
            self.run("down", "--engines", "--yes")
        if self.process is not None:
            self.process.wait(timeout=60)

    # -- clients

    def endpoint(self) -> str:
        try:
            return str(json.loads((self.data_dir / "endpoint.json").read_bytes())["url"])
        except (OSError, ValueError):
            return ""

    def aws_environment(self) -> dict[str, str]:
        """What ``eval "$(cachekeep env)"`` leaves in the environment."""
        shown = subprocess.run(
            ["sh", "-c", f'eval "$(cachekeep env --data-dir {self.data_dir})" && env -0'],
            capture_output=True,
            text=True,
            check=True,
            env=self.environment() | {"AWS_PROFILE": "other"},
        )
        return dict(line.split("=", 1) for line in shown.stdout.split("\0") if line)

    def client(self, service: str = "elasticache", **config: Any) -> Any:
        """An unmodified boto3 client."""
        env = self.aws_environment()
        return boto3.client(
            service,
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            verify=env.get("AWS_CA_BUNDLE"),
            config=Config(**config),
        )

    def aws(self, *arguments: str) -> Any:
        """The AWS command line."""
        done = subprocess.run(
            [AWS, "--output", "json", *arguments], capture_output=True, text=True, env=self.aws_environment(), timeout=180
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    # -- what there is

    def status(self, name: str = "") -> Any:
        found = json.loads(self.run("status", "--json", *([name] if name else [])).stdout)["caches"]
        return found[0] if name else found

    def records(self) -> dict[str, Record]:
        """Every process on record, by name."""
        files = self.data_dir.glob("nodes/*/*/process.json")
        return {path.parent.name: msgspec.json.decode(path.read_bytes(), type=Record) for path in files}

    def pids(self) -> dict[str, int]:
        """Live processes on record, by name."""
        return {name: r.pid for name, r in self.records().items() if r.pid and alive(r.pid)}

    def processes(self) -> set[int]:
        """Every process of this machine that works in one of our directories, on record or not."""
        found: set[int] = set()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(self.data_dir / "nodes"):
                    found.add(int(entry.name))
            except OSError:
                continue
        return {pid for pid in found if alive(pid)}

    def narration(self) -> str:
        """What the control plane has said."""
        return self.log.read_text()


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    seen = proc.stat(pid)
    return seen is not None and proc.process_of(seen.state) != "exited"


def kill(pid: int) -> None:
    """SIGKILL; gone on return."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def created(client: Any, name: str, **options: Any) -> Any:
    """A new Valkey group, available."""
    asked = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro", "NumCacheClusters": 3, **options}
    client.create_replication_group(ReplicationGroupId=name, ReplicationGroupDescription=name, **asked)
    return available(client, name)


def available(client: Any, name: str) -> Any:
    """The group as soon as it is available."""
    client.get_waiter("replication_group_available").wait(ReplicationGroupId=name)
    return client.describe_replication_groups(ReplicationGroupId=name)["ReplicationGroups"][0]


def deleted(client: Any, name: str) -> None:
    """Delete a group; gone on return."""
    client.delete_replication_group(ReplicationGroupId=name)
    client.get_waiter("replication_group_deleted").wait(ReplicationGroupId=name)
