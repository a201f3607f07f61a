"""Real servers on private loopback ports, to be killed, frozen and started again by the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import valkey
from tests.addresses import free_port


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, valkey.exceptions.ValkeyError):
            if value := condition():
                return value
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


@dataclass
class Server:
    """A process that can be hurt. Always this very process, by its id."""

    argv: list[str]
    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> Server:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.argv, cwd=self.directory, stdout=log, stderr=log)
        wait_for(lambda: _answers(self.port), f"{self.argv[0]} to listen on {self.port}")
        return self

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


def engine_name() -> str:
    for name in ("valkey-server", "redis-server"):
        if shutil.which(name):
            return name
    pytest.skip("needs valkey-server or redis-server on the PATH")


@contextmanager
def engine(*options: str, port: int | None = None) -> Iterator[Server]:
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="ck-patterns-") as directory:
        argv = [engine_name(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        argv += ["--repl-diskless-sync-delay", "0", *options]
        server = Server(argv, port, Path(directory))
        try:
            yield server.start()
        finally:
            server.kill()


@contextmanager
def memcached(port: int | None = None) -> Iterator[Server]:
    if not shutil.which("memcached"):
        pytest.skip("needs memcached on the PATH")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="ck-patterns-") as directory:
        argv = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", *(["-u", "nobody"] if os.getuid() == 0 else [])]
        server = Server(argv, port, Path(directory))
        try:
            yield server.start()
        finally:
            server.kill()


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(engine("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")) for _ in range(nodes)]
        clients = [valkey.Valkey(port=server.port) for server in servers]
        share = 16384 // nodes
        for i, client in enumerate(clients):
            last = 16383 if i == nodes - 1 else (i + 1) * share - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", i * share, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        for client in clients:
            wait_for(
                lambda c=client: (
                    b"cluster_state:ok" in c.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)
                    and len(c.execute_command("CLUSTER", "SLOTS")) == nodes
                ),
                "the cluster to form",
            )
            client.close()
        yield servers


POSTGRES = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def postgres() -> Iterator[Server]:
    """A PostgreSQL of our own. It refuses to run as root, so there it runs as `postgres`."""
    binaries = POSTGRES if POSTGRES.exists() else None
    if binaries is None:
        found = shutil.which("initdb")
        if found is None:
            pytest.skip("needs PostgreSQL's initdb and postgres")
        binaries = Path(found).parent
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ck-pg-") as directory:
        if as_user:
            shutil.chown(directory, "postgres", "postgres")
        data = f"{directory}/data"
        subprocess.run(
            [*as_user, str(binaries / "initdb"), "-D", data, "-U", "test", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
        )
        argv = [
            *(["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"] if as_user else []),
            *(str(binaries / "postgres"), "-D", data, "-p", str(port), "-k", directory),
            *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"),
        ]
        server = Server(argv, port, Path(directory))
        try:
            server.start()
            wait_for(lambda: _accepts(binaries, port), "PostgreSQL to accept connections")
            yield server
        finally:
            if server.process is not None:
                server.process.send_signal(signal.SIGQUIT)  # immediate: its children go too
                server.process.wait()
                server.process = None


def _accepts(binaries: Path, port: int) -> bool:
    command = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
    return subprocess.run(command, check=False).returncode == 0
