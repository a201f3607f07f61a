"""Memcached with auto discovery: which nodes there are, asked of the configuration endpoint; which node has a key, by rendezvous
hashing.

pymemcache has the connections and the hash; it has no discovery that goes on, and its HashClient answers for nodes it could not
reach (decision 0013), so the choosing is ours. A node that cannot be reached raises: its keys are not moved to another, where
values from an earlier outage may lie. Only the list from the configuration endpoint moves keys.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from pymemcache.client.base import PooledClient  # type: ignore[import-untyped]
from pymemcache.client.rendezvous import RendezvousHash  # type: ignore[import-untyped]
from pymemcache.exceptions import MemcacheError  # type: ignore[import-untyped]

from cachekeep_patterns import forks

Node = tuple[str, int]


def parse_cluster(reply: bytes) -> tuple[int, list[Node]]:
    """(version, nodes) of a `config get cluster` reply, or of the older `get AmazonElastiCache:cluster`.

    The form is `<version>\\n<host>|<ip>|<port> …\\n`; the address is preferred where there is one (AWS:
    AutoDiscovery.AddingToYourClientLibrary). Raises ValueError.
    """
    match = re.match(rb"(?:CONFIG cluster|VALUE AmazonElastiCache:cluster) \d+ (\d+)\r\n", reply)
    if match is None:
        raise ValueError("this is not a cluster configuration")
    payload = reply[match.end() : match.end() + int(match[1])].decode()
    version, _, listed = payload.strip().partition("\n")
    nodes = []
    for one in listed.split():
        host, address, port = one.split("|")
        nodes.append((address or host, int(port)))
    if not nodes:
        raise ValueError("the cluster configuration lists no node")
    return int(version), sorted(nodes)


def ask_cluster(node: Node, timeout_seconds: float, tls: Any = None) -> tuple[int, list[Node]]:
    """Ask one node for the list. Raises OSError and ValueError."""
    reply = _converse(node, b"config get cluster\r\n", timeout_seconds, tls)
    if reply.startswith((b"ERROR", b"CLIENT_ERROR", b"END")):
        reply = _converse(node, b"get AmazonElastiCache:cluster\r\n", timeout_seconds, tls)
    return parse_cluster(reply)


def _converse(node: Node, command: bytes, timeout_seconds: float, tls: Any) -> bytes:
    with socket.create_connection(node, timeout_seconds) as plain:
        talk = tls.wrap_socket(plain, server_hostname=node[0]) if tls is not None else plain
        talk.sendall(command)
        reply = b""
        while not reply.endswith((b"END\r\n", b"ERROR\r\n")) and not reply.startswith(b"CLIENT_ERROR"):
            part = talk.recv(65536)
            if not part:
                raise ConnectionResetError(f"{node[0]}:{node[1]} closed the connection")
            reply += part
        return reply


class _Nodes:
    """One node list and the connections to it. Never changed, only replaced: readers need no lock."""

    def __init__(self, version: int, nodes: list[Node], old: _Nodes | None, make: Callable[[Node], PooledClient]) -> None:
        self.version = version
        self.nodes = nodes
        self.clients: dict[str, PooledClient] = {
            f"{host}:{port}": old.clients[f"{host}:{port}"]
            if old is not None and f"{host}:{port}" in old.clients
            else make((host, port))
            for host, port in nodes
        }
        self._hash = RendezvousHash(list(self.clients))

    def __bool__(self) -> bool:
        return bool(self.nodes)

    def of(self, key: str) -> PooledClient:
        return self.clients[self._hash.get_node(key)]


class MemcachedCluster:
    """A blocking client of a Memcached cluster, with the methods of pymemcache's `Client` that take keys.

    ``url`` is `memcached://configuration-endpoint:port`, or several nodes `memcached://a:11211,b:11211` (then nothing is
    discovered). A daemon thread asks for the list every ``poll_seconds``, of the known nodes in turn and of the configuration
    endpoint last; lists of a lower version are ignored. Where the endpoint cannot be asked at first, every call asks it, and raises
    ConnectionError until it answers. Threads may share it.
    """

    memcached_nodes = True

    def __init__(
        self, url: str, *, poll_seconds: float = 60.0, timeout_seconds: float = 1.0, tls_context: Any = None, **options: Any
    ) -> None:
        listed = [_node(one) for one in urlsplit(url).netloc.split(",")]
        self.timeout_seconds, self.poll_seconds, self._tls = timeout_seconds, poll_seconds, tls_context
        self._options = {"no_delay": True, "default_noreply": False, **options}
        self._endpoint = listed[0] if len(listed) == 1 else None
        self._stopped = threading.Event()
        self._turn = 0
        self._poller: threading.Thread | None = None
        self._learning = threading.Lock()
        self._nodes = _Nodes(0, sorted(listed) if self._endpoint is None else [], None, self._make)
        forks.renew_in_children(self)
        with contextlib.suppress(ConnectionError):  # a program that starts meanwhile must not fail
            self._known()

    def forked(self) -> None:
        """The parent goes on with its sockets, and its thread stayed there."""
        self._learning = threading.Lock()
        self._nodes = _Nodes(self._nodes.version, self._nodes.nodes, None, self._make)
        if self._poller is not None:
            self._watch()

    def _watch(self) -> None:
        self._poller = threading.Thread(target=self._poll, name="cachekeep-discovery", daemon=True)
        self._poller.start()

    def _known(self) -> _Nodes:
        """The nodes, asked for if there has been no answer yet. Raises ConnectionError."""
        endpoint = self._endpoint
        if self._nodes or endpoint is None:
            return self._nodes
        try:
            version, nodes = ask_cluster(endpoint, self.timeout_seconds, self._tls)
        except OSError as error:
            raise ConnectionError(
                f"{endpoint[0]}:{endpoint[1]}, which knows the nodes of the cluster, cannot be asked: {error}"
            ) from error
        except ValueError:  # a plain memcached: it is the cluster
            version, nodes = 0, [endpoint]
        with self._learning:
            if not self._nodes:
                self._nodes = _Nodes(version, nodes, None, self._make)
                if not version:
                    self._endpoint = None
                else:
                    self._watch()
        return self._nodes

    def _make(self, node: Node) -> PooledClient:
        return PooledClient(
            node,
            connect_timeout=self.timeout_seconds,
            timeout=self.timeout_seconds,
            tls_context=self._tls,
            **self._options,
        )

    @property
    def nodes(self) -> list[Node]:
        return self._nodes.nodes

    @property
    def version(self) -> int:
        return self._nodes.version

    def discover(self) -> bool:
        """Ask for the list now; whether it changed. Raises OSError or ValueError if nobody answers."""
        if self._endpoint is None:
            return False
        if not self._nodes:
            return bool(self._known())
        known = self._nodes.nodes
        self._turn += 1
        trouble: Exception = MemcacheError("no node is known")
        for node in dict.fromkeys([known[self._turn % len(known)], self._endpoint]):
            try:
                version, nodes = ask_cluster(node, self.timeout_seconds, self._tls)
            except (OSError, ValueError) as error:
                trouble = error
                continue
            if version <= self._nodes.version:
                return False
            old, self._nodes = self._nodes, _Nodes(version, nodes, self._nodes, self._make)
            for name, client in old.clients.items():
                if name not in self._nodes.clients:
                    client.close()
            return True
        raise trouble

    def _poll(self) -> None:
        while not self._stopped.wait(self.poll_seconds):
            with contextlib.suppress(OSError, ValueError, MemcacheError):
                self.discover()

    def close(self) -> None:
        self._stopped.set()
        for client in self._nodes.clients.values():
            client.close()

    # ------------------------------------------------------------------ by key

    def get(self, key: str, default: Any = None) -> Any:
        return self._known().of(key).get(key, default)

    def gets(self, key: str) -> Any:
        return self._known().of(key).gets(key)

    def set(self, key: str, value: Any, expire: int = 0, noreply: bool | None = None) -> Any:
        return self._known().of(key).set(key, value, expire, noreply)

    def add(self, key: str, value: Any, expire: int = 0, noreply: bool | None = None) -> Any:
        return self._known().of(key).add(key, value, expire, noreply)

    def cas(self, key: str, value: Any, cas: Any, expire: int = 0, noreply: bool | None = False) -> Any:
        return self._known().of(key).cas(key, value, cas, expire, noreply)

    def delete(self, key: str, noreply: bool | None = None) -> Any:
        return self._known().of(key).delete(key, noreply)

    def touch(self, key: str, expire: int = 0, noreply: bool | None = None) -> Any:
        return self._known().of(key).touch(key, expire, noreply)

    def incr(self, key: str, value: int, noreply: bool | None = False) -> Any:
        return self._known().of(key).incr(key, value, noreply)

    def decr(self, key: str, value: int, noreply: bool | None = False) -> Any:
        return self._known().of(key).decr(key, value, noreply)

    def stats(self) -> Any:
        """Of one node, whichever."""
        return next(iter(self._known().clients.values())).stats()

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        nodes = self._known()
        by_client: dict[int, tuple[PooledClient, list[str]]] = {}
        for key in keys:
            client = nodes.of(key)
            by_client.setdefault(id(client), (client, []))[1].append(key)
        found: dict[str, Any] = {}
        for client, of_client in by_client.values():
            found |= client.get_many(of_client)
        return found


def _node(text: str) -> Node:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    return host or "127.0.0.1", int(port or 11211)


def wait_for_version(cluster: MemcachedCluster, version: int, timeout_seconds: float) -> bool:
    """Whether the cluster's list reached ``version`` in time."""
    until = time.monotonic() + timeout_seconds
    while cluster.version < version and time.monotonic() < until:
        time.sleep(0.01)
    return cluster.version >= version
