"""The tracking connections behind a memory that is kept right: one thread, one connection per primary."""

from __future__ import annotations

import contextlib
import random
import selectors
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import valkey
from valkey._parsers.resp3 import _RESP3Parser
from valkey.connection import Connection, SSLConnection, UnixDomainSocketConnection

_PUSHED = object()
_SETTINGS = frozenset(
    [
        "host",
        "port",
        "path",
        "username",
        "password",
        "credential_provider",
        "db",
        "socket_connect_timeout",
        "socket_keepalive",
        "ssl_keyfile",
        "ssl_certfile",
        "ssl_cert_reqs",
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_check_hostname",
        "ssl_min_version",
    ]
)


class Tracked(Protocol):
    """The memory: `near.NearCache`."""

    prefix: str | None
    max_stale_seconds: float
    trusted_until: float

    def drop(self, key: str) -> None:
        """The key changed."""

    def flush(self) -> None:
        """Everything may have changed."""


class Lost(Exception):
    """The stream broke, fell silent, or the cluster changed shape: nothing heard so far counts any more."""


class _Link:
    """One connection in tracking mode."""

    def __init__(self, connection_class: type[Connection], settings: dict[str, Any], near: Tracked, cluster: bool) -> None:
        self.near = near
        self.connection: Any = connection_class(
            **settings,
            protocol=3,
            parser_class=_RESP3Parser,  # libvalkey's cannot hand over pushes
            socket_timeout=near.max_stale_seconds,
            client_name="cachekeep-near",
        )
        self.cluster = cluster
        self.epoch: bytes | None = None
        self.asked_at: float | None = None
        self.trusted_until = 0.0

    def open(self) -> None:
        self.connection.connect()
        self.connection._parser.set_invalidation_push_handler(self._on_push)
        self.connection._parser.set_pubsub_push_handler(lambda _push: _PUSHED)
        prefix = ("PREFIX", self.near.prefix) if self.near.prefix else ()
        self.command("CLIENT", "TRACKING", "ON", "BCAST", *prefix)

    def command(self, *args: Any) -> Any:
        """Only before tracking is trusted, or on a connection that does not track: waits for the reply."""
        self.connection.send_command(*args)
        while (reply := self.connection.read_response(disable_decoding=True, push_request=True)) is _PUSHED:
            pass
        return reply

    def _on_push(self, push: list[Any]) -> object:
        if push[1] is None:
            self.near.flush()  # FLUSHALL, or the server forgot
        else:
            for key in push[1]:
                self.near.drop(key.decode("utf-8", "surrogateescape"))
        return _PUSHED

    def fileno(self) -> int:
        return int(self.connection._sock.fileno())

    def ask(self) -> None:
        self.asked_at = time.monotonic()
        self.connection.send_command(*(("CLUSTER", "INFO") if self.cluster else ("PING",)))

    def read(self) -> None:
        """Everything that has arrived."""
        while self.connection.can_read(timeout=0):
            reply = self.connection.read_response(disable_decoding=True, push_request=True)
            if reply is _PUSHED:
                continue
            if self.cluster:
                epoch = next((line for line in reply.split(b"\r\n") if line.startswith(b"cluster_current_epoch")), b"")
                if self.epoch not in (None, epoch):
                    raise Lost("the cluster changed shape")
                self.epoch = epoch
            assert self.asked_at is not None
            self.trusted_until = self.asked_at + self.near.max_stale_seconds
            self.asked_at = None

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.connection.disconnect()


class Tracker:
    def __init__(self, near: Tracked, client: Any) -> None:
        self.near = near
        self.client = client
        self.trouble: BaseException | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cachekeep-near", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(self.near.max_stale_seconds * 2)

    def _run(self) -> None:
        pause = 0.01
        while not self._stopped.is_set():
            links: list[_Link] = []
            try:
                links = self._connect()
                self.near.flush()
                pause = 0.01
                self._listen(links)
            except (Lost, valkey.exceptions.ValkeyError, OSError, AssertionError, ValueError, AttributeError) as error:
                self.trouble = error
            finally:
                self.near.trusted_until = 0.0
                self.near.flush()
                for link in links:
                    link.close()
            self._stopped.wait(pause * (0.5 + random.random()))
            pause = min(1.0, pause * 2)

    def _listen(self, links: list[_Link]) -> None:
        beat = self.near.max_stale_seconds / 3
        next_beat = 0.0
        while not self._stopped.is_set():
            now = time.monotonic()
            if now >= next_beat:
                for link in links:
                    if link.asked_at is None:
                        link.ask()
                    elif now - link.asked_at > self.near.max_stale_seconds:
                        raise Lost("no answer to the heartbeat")
                next_beat = now + beat
            for link in _readable(links, min(0.3, max(0.0, next_beat - now))):
                link.read()
            # Trust is the least of all; it only ever moves on PONGs.
            self.near.trusted_until = min(link.trusted_until for link in links)

    def _connect(self) -> list[_Link]:
        links: list[_Link] = []
        try:
            for connection_class, settings, cluster in self._primaries():
                link = _Link(connection_class, settings, self.near, cluster)
                links.append(link)
                link.open()
        except BaseException:
            for link in links:
                link.close()
            raise
        return links

    def _primaries(self) -> Iterator[tuple[type[Connection], dict[str, Any], bool]]:
        pool = getattr(self.client, "connection_pool", None)
        if pool is not None:
            name = pool.connection_class.__name__
            kind = {"SSLConnection": SSLConnection, "UnixDomainSocketConnection": UnixDomainSocketConnection}
            yield kind.get(name, Connection), _settings(pool.connection_kwargs), False
            return
        manager = self.client.nodes_manager
        base = getattr(manager, "connection_kwargs", None) or getattr(self.client, "connection_kwargs", {})
        kind_of_cluster: type[Connection] = SSLConnection if base.get("ssl") or _tls(base) else Connection
        starts = [(n.host, n.port) for n in (*manager.startup_nodes.values(), *manager.nodes_cache.values())]
        for host, port in _cluster_primaries(kind_of_cluster, _settings(base), starts):
            yield kind_of_cluster, {**_settings(base), "host": host, "port": port}, True


def _readable(links: Sequence[_Link], timeout_seconds: float) -> list[_Link]:
    """Those with something to read. `select.select` takes no descriptor above 1,023."""
    with selectors.DefaultSelector() as selector:
        for link in links:
            selector.register(link, selectors.EVENT_READ, link)
        return [key.data for key, _ in selector.select(timeout_seconds)]


def _tls(kwargs: dict[str, Any]) -> bool:
    return getattr(kwargs.get("connection_class"), "__name__", "") == "SSLConnection"


def _settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name in _SETTINGS and value is not None}


def _cluster_primaries(kind: type[Connection], settings: dict[str, Any], starts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    trouble: Exception = Lost("no cluster node is known")
    for host, port in dict.fromkeys(starts):
        connection: Any = kind(**{**settings, "host": host, "port": port}, socket_timeout=2.0)
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS")
            slots = connection.read_response(disable_decoding=True)
            return list(dict.fromkeys((one[2][0].decode() or host, int(one[2][1])) for one in slots))
        except (valkey.exceptions.ValkeyError, OSError) as error:
            trouble = error
        finally:
            connection.disconnect()
    raise trouble
