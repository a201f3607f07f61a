"""What is compared in cluster mode: a group of ours, and the same engine put together and kept by its own means."""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import valkey
from tests.acceptance.installation import Installation, available, deleted
from tests.addresses import new_pool
from valkey.cluster import ValkeyCluster

from cachekeep.chaos.probe import Where
from cachekeep.cli.client import call
from cachekeep.engines.catalogue import Build
from cachekeep.plan.slots.ranges import SLOTS, Ranges, even
from cachekeep.settings import Settings

PORT = 6379
NODE_TYPE = "cache.m5.large"
DEFAULT_NODE_TIMEOUT_MS = 15_000
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.005


class Cluster(Protocol):
    """A running cluster."""

    name: str

    def nodes(self) -> list[Where]:
        """All of them."""

    def reshard(self, number: int) -> None:
        """Have so many slots of the first primary go to the last; may return before they have."""

    def kill(self, address: str) -> None:
        """SIGKILL the node there."""

    def heal(self) -> None:
        """Return when the cluster is whole again."""

    def close(self) -> None:
        """End everything."""


# -- what any cluster tells


def ask(where: Where, *command: object) -> Any:
    """One command, on a connection of its own. Raises ValkeyError."""
    with valkey.Valkey(*where, socket_timeout=5, decode_responses=True) as client:
        return client.execute_command(*command)


def owner(slot: int, nodes: Sequence[Where]) -> str:
    """Address of the slot's owner: what the first node that answers says. Raises OSError when none does."""
    for where in nodes:
        with contextlib.suppress(valkey.ValkeyError, OSError):
            for first, last, primary, *_ in _slots(where):
                if first <= slot <= last:
                    return str(primary[0])
    raise OSError("no node answers")


def _slots(where: Where) -> list[Any]:
    with valkey.Valkey(*where, socket_timeout=0.25, socket_connect_timeout=0.25, decode_responses=True) as client:
        client.set_response_callback("CLUSTER SLOTS", lambda reply, **_: reply)
        return list(client.execute_command("CLUSTER SLOTS"))


def owned(where: Where) -> int:
    """How many slots the node owns; −1 while one of them is half open."""
    for row in _rows(where):
        if "myself" in row[2]:
            ranges = row[8:]
            if any("[" in word for word in ranges):
                return -1
            return sum(int(b or a) - int(a) + 1 for a, _, b in (word.partition("-") for word in ranges))
    return 0


def _rows(where: Where) -> list[list[str]]:
    with valkey.Valkey(*where, socket_timeout=5, decode_responses=True) as client:
        client.set_response_callback("CLUSTER NODES", lambda reply, **_: reply)
        return [line.split() for line in client.execute_command("CLUSTER NODES").splitlines()]


def whole(nodes: Sequence[Where]) -> bool:
    """Every node knows all the others and serves; every replica follows."""
    return all(_fine(where, len(nodes)) for where in nodes)


def _fine(where: Where, known: int) -> bool:
    """Cheap enough to be asked again and again of many nodes while something is measured."""
    try:
        with socket.create_connection(where, timeout=5) as line, line.makefile("rb") as replies:
            line.sendall(b"CLUSTER INFO\r\nCLUSTER NODES\r\nINFO replication\r\n")
            state, others, replication = (_bulk(replies) for _ in range(3))
    except (OSError, ValueError):
        return False
    flags = {flag for row in others.splitlines() for flag in row.split()[2].split(b",")}
    return (
        b"cluster_state:ok" in state
        and b"cluster_known_nodes:%d\r" % known in state
        and not flags & {b"fail", b"fail?", b"handshake"}
        and b"master_link_status:down" not in replication
    )


def _bulk(replies: BinaryIO) -> bytes:
    """Raises ValueError for any other reply."""
    text = replies.read(int(replies.readline()[1:]) + 2)
    if not text.endswith(b"\r\n"):
        raise ValueError("cut off")
    return text[:-2]


def until(met: Callable[[], object], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
    """Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)


def slot_of(key: bytes) -> int:
    """Of a key without a hash tag [Redis cluster specification: CRC16/XMODEM]."""
    return binascii.crc_hqx(key, 0) % SLOTS


# -- ours


class Ours:
    """A group behind ``cachekeep up``, with its database, as users have it."""

    name = "Cachekeep"

    def __init__(self, place: Path, build: Build) -> None:
        self._build = build
        self._installation = Installation(place, "--log-format", "json").up()
        self._settings = Settings(data_dir=self._installation.data_dir)
        self._client = self._installation.client()

    def create(self, shards: Sequence[Ranges], replicas: int) -> float:
        """Seconds from the request until it is available and whole."""
        before = time.perf_counter()
        self._client.create_replication_group(
            ReplicationGroupId="bench",
            ReplicationGroupDescription="bench",
            Engine=self._build.engine,
            EngineVersion=".".join(self._build.version.split(".")[:2]),
            CacheNodeType=NODE_TYPE,
            ClusterMode="enabled",
            AutomaticFailoverEnabled=True,
            NodeGroupConfiguration=[{"ReplicaCount": replicas, "Slots": _text(ranges, ",")} for ranges in shards],
        )
        available(self._client, "bench")
        until(lambda: whole(self.nodes()), "the cluster is whole")
        return time.perf_counter() - before

    def nodes(self) -> list[Where]:
        return [(record.address, PORT) for _, record in sorted(self._installation.records().items())]

    def delete(self) -> None:
        deleted(self._client, "bench")

    def reshard(self, number: int) -> None:
        self._client.modify_replication_group_shard_configuration(
            ReplicationGroupId="bench", NodeGroupCount=2, ApplyImmediately=True
        )

    def kill(self, address: str) -> None:
        (pid,) = (r.pid for r in self._installation.records().values() if r.address == address)
        os.kill(pid, signal.SIGKILL)

    def heal(self) -> None:
        def settled() -> bool:
            seen = call(self._settings, "status", name="bench")["caches"][0]
            return seen["status"] == "available" and all(n["status"] == "available" for n in seen["nodes"])

        until(lambda: settled() and whole(self.nodes()), "the cluster is whole again")

    def close(self) -> None:
        self._installation.close()


# -- the engine alone


class Alone:
    """The same engine without us: its own election, its own command line."""

    def __init__(
        self, place: Path, build: Build, *, name: str, node_timeout_ms: int = DEFAULT_NODE_TIMEOUT_MS, pipeline: int | None = None
    ) -> None:
        self.name, self._place, self._build = name, place, build
        self._timeout_ms, self._pipeline = node_timeout_ms, pipeline
        self._base = new_pool().rpartition(".")[0]
        self._addresses: list[str] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def create(self, shards: Sequence[Ranges], replicas: int) -> float:
        """By its command line; the slots are dealt out by it. Seconds from the first start until it is whole."""
        self._lay_out(len(shards), replicas)
        before = time.perf_counter()
        self._start_all()
        until(lambda: all(self._listens(a) for a in self._addresses), "all nodes listen")
        hosts = [f"{a}:{PORT}" for a in self._addresses]
        self._cli("create", *hosts, "--cluster-replicas", str(replicas))
        until(lambda: whole(self.nodes()), "the cluster is whole")
        return time.perf_counter() - before

    def create_prepared(self, shards: Sequence[Ranges], replicas: int) -> float:
        """By ``nodes.conf`` written before the start: nothing is left but the engine's own delay. Seconds, as above."""
        self._lay_out(len(shards), replicas)
        for address in self._addresses:
            (self._place / address / "nodes.conf").write_text(self._nodes_conf(address, shards, replicas))
        before = time.perf_counter()
        self._start_all()
        until(lambda: whole(self.nodes()), "the cluster is whole")
        return time.perf_counter() - before

    def _lay_out(self, shards: int, replicas: int) -> None:
        self._addresses = [f"{self._base}.{i + 1}" for i in range(shards * (replicas + 1))]
        for address in self._addresses:
            (self._place / address).mkdir(parents=True)

    def _nodes_conf(self, own: str, shards: Sequence[Ranges], replicas: int) -> str:
        """The first addresses are the primaries'."""
        lines = []
        for i, address in enumerate(self._addresses):
            leads = i < len(shards)
            flags = ("myself," if address == own else "") + ("master" if leads else "slave")
            follows = "-" if leads else _id(self._addresses[i % len(shards)])
            words = [_id(address), f"{address}:{PORT}@{PORT + 10_000}", flags, follows, "0", "0", str(i + 1 if leads else 0)]
            lines.append(" ".join([*words, "connected", *([_text(shards[i], " ")] if leads else [])]))
        return "\n".join([*lines, f"vars currentEpoch {len(shards)} lastVoteEpoch 0", ""])

    def _start_all(self) -> None:
        for address in self._addresses:
            self._start(address)

    def _start(self, address: str) -> None:
        directory = self._place / address
        options = ["--bind", address, "--bind-source-addr", address, "--port", str(PORT), "--dir", str(directory)]
        options += ["--protected-mode", "no", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        options += ["--cluster-enabled", "yes", "--cluster-node-timeout", str(self._timeout_ms)]
        with (directory / "log").open("ab") as log:
            argv = [self._build.server, *options]
            self._processes[address] = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _listens(self, address: str) -> bool:
        with contextlib.suppress(valkey.ValkeyError):
            return bool(ask((address, PORT), "PING"))
        return False

    def _cli(self, command: str, *arguments: str) -> None:
        assert self._build.cli is not None
        argv = [self._build.cli, "--cluster", command, *arguments, "--cluster-yes"]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"--cluster {command} failed: {(done.stdout + done.stderr)[-500:]}")

    def nodes(self) -> list[Where]:
        return [(a, PORT) for a in self._addresses]

    def reshard(self, number: int) -> None:
        giver, taker = self._addresses[0], self._addresses[1]
        to = ["--cluster-from", _id(giver), "--cluster-to", _id(taker), "--cluster-slots", str(number)]
        to += ["--cluster-pipeline", str(self._pipeline)] if self._pipeline else []
        self._cli("reshard", f"{giver}:{PORT}", *to)

    def kill(self, address: str) -> None:
        self._processes[address].kill()
        self._processes[address].wait()

    def heal(self) -> None:
        for address, process in self._processes.items():
            if process.poll() is not None:
                self._start(address)
        until(lambda: whole(self.nodes()), "the cluster is whole again")

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def cli_version(build: Build) -> str:
    """What the command line says of itself."""
    assert build.cli is not None
    return subprocess.run([build.cli, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def evenly(shards: int) -> list[Ranges]:
    """As both sides deal the slots out."""
    return list(even([f"{i:04}" for i in range(shards)]).values())


def _text(ranges: Ranges, between: str) -> str:
    return between.join(f"{a}-{b}" if a != b else str(a) for a, b in ranges)


def _id(address: str) -> str:
    return hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()


# -- a client in the meantime


class Pace(msgspec.Struct, frozen=True):
    """What a client felt."""

    latencies_seconds: list[float]
    errors: list[str]


class Busy:
    """An ordinary cluster client in a thread of its own: writes and reads keys that are there, one command after the other."""

    def __init__(self, where: Where, keys: Sequence[bytes], value: bytes) -> None:
        self._where, self._keys, self._value = where, keys, value
        self._stop = threading.Event()
        self._latencies: list[float] = []
        self._errors: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Commands so far."""
        return len(self._latencies)

    def lap(self) -> Pace:
        """What was felt since the last lap."""
        felt = Pace(self._latencies, self._errors)
        self._latencies, self._errors = [], []
        return felt

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        client = ValkeyCluster(host=self._where[0], port=self._where[1])
        for key in _forever(self._keys):
            for command in (lambda k=key: client.set(k, self._value), lambda k=key: self._read(client, k)):
                if self._stop.is_set():
                    client.close()  # type: ignore[no-untyped-call]
                    return
                before = time.perf_counter()
                try:
                    command()
                except Exception as error:
                    self._errors.append(repr(error))
                self._latencies.append(time.perf_counter() - before)

    def _read(self, client: Any, key: bytes) -> None:
        if client.get(key) != self._value:
            self._errors.append(f"{key!r} has another value")


def _forever(keys: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from keys


def fill(where: Where, count: int, value: bytes) -> list[bytes]:
    """So many keys, of any slot but the last, to the node that owns those; their names."""
    keys: list[bytes] = []
    number = 0
    with valkey.Valkey(*where, socket_timeout=60) as client:
        while len(keys) < count:
            pack = [k for k in (b"key:%d" % i for i in range(number, number + 2000)) if slot_of(k) != SLOTS - 1]
            number += 2000
            pipe = client.pipeline(transaction=False)
            for key in pack:
                pipe.set(key, value)
            pipe.execute()
            keys += pack
    return keys


def tag_of(ranges: Ranges) -> str:
    """A hash tag whose slot lies in these ranges."""
    return next(t for t in (f"t{i}" for i in range(100_000)) if any(a <= slot_of(t.encode()) <= b for a, b in ranges))


def version_words(build: Build) -> str:
    """``valkey 9.1.2 (its CLI: valkey-cli 8.0.1)``."""
    found = re.search(r"\d+\.\d+\.\d+", cli_version(build))
    cli = f"{Path(build.cli or '').name} {found[0] if found else ''}"
    return f"{build.engine} {build.version} ({cli})"
