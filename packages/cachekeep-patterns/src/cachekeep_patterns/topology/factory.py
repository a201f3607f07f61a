"""`connect`: from an endpoint's URL to a client. valkey-py does the work; we choose the settings that a failover needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import valkey
import valkey.asyncio
from valkey.connection import parse_url
from valkey.credentials import CredentialProvider

from cachekeep_patterns.topology.bounds import BoundedCluster, bounded
from cachekeep_patterns.topology.retry import RETRIED, AsyncDeadlineRetry, DeadlineRetry
from cachekeep_patterns.topology.split import AsyncSplitValkey, SplitValkey

MAX_CONNECTIONS = 100
_KNOWN = {
    name
    for client in (valkey.Valkey, valkey.ValkeyCluster, valkey.asyncio.Valkey, valkey.asyncio.ValkeyCluster)
    for name in inspect.signature(client.__init__).parameters
} - {"self", "args", "kwargs"}
_PLAIN, _TLS, _UNIX = ("valkey", "redis"), ("valkeys", "rediss"), "unix"


class _Token(CredentialProvider):
    """Asks for the token at every new connection: tokens rotate, connections that stand need none."""

    def __init__(self, username: str | None, token: Callable[[], str]) -> None:
        self._username, self._token = username, token

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        return (self._username, self._token()) if self._username else (self._token(),)


def _settings(
    url: str,
    username: str | None,
    password: str | None,
    token: Callable[[], str] | None,
    tls: bool | None,
    ca_file: str | None,
    timeout_seconds: float,
    options: dict[str, Any],
) -> dict[str, Any]:
    parts = urlsplit(url if "://" in url else f"valkey://{url}")
    if parts.scheme not in (*_PLAIN, *_TLS, _UNIX):
        raise ValueError(f"cannot connect to {parts.scheme}://: valkey, valkeys, redis, rediss, unix or memcached")
    username = username or (unquote(parts.username) if parts.username else None)
    password = password or (unquote(parts.password) if parts.password else None)
    settings: dict[str, Any] = {
        "host": parts.hostname or "127.0.0.1",
        "port": parts.port or 6379,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "socket_keepalive": True,
        **parse_url(f"valkey://?{parts.query}"),
        **options,
    }
    unknown = sorted(set(settings) - _KNOWN)
    if unknown:  # the cluster client would take them and do nothing with them
        raise TypeError(f"valkey-py has no option {', '.join(unknown)}; these come from the URL's query or the call")
    if token is not None:
        settings["credential_provider"] = _Token(username, token)
    else:
        settings |= {"username": username, "password": password}
    if tls if tls is not None else parts.scheme in _TLS:
        settings |= {"ssl": True, "ssl_check_hostname": True} | ({"ssl_ca_certs": ca_file} if ca_file else {})
    if parts.scheme == _UNIX:
        del settings["host"], settings["port"], settings["socket_keepalive"]
        return settings | {"unix_socket_path": unquote(parts.path), "db": int(settings.get("db", 0))}
    path = parts.path.strip("/")
    return settings | ({"db": int(path)} if path else {})


def connect(
    url: str,
    *,
    reader: str | None = None,
    cluster: bool = False,
    username: str | None = None,
    password: str | None = None,
    token: Callable[[], str] | None = None,
    tls: bool | None = None,
    ca_file: str | None = None,
    timeout_seconds: float = 1.0,
    deadline_seconds: float = 5.0,
    read_from_replicas: bool = False,
    read_your_writes_seconds: float = 0.0,
    max_connections: int = MAX_CONNECTIONS,
    **options: Any,
) -> Any:
    """A blocking client: `valkey.Valkey`, `SplitValkey` (with ``reader``), `valkey.ValkeyCluster`, or, for `memcached://`,
    a `MemcachedCluster` that follows the configuration endpoint.

    ``url``         `valkey://host:port/db`; `unix:///path/of/socket?db=0`; `valkeys://` or ``tls=True`` for TLS, its host name
                    and chain checked (``ca_file``)
    ``reader``      the reader endpoint's URL: plain reads go there, and lag behind
    ``cluster``     the URL is a configuration endpoint of cluster mode; ``read_from_replicas`` reads from any node of a slot
    ``token``       called for the password of every new connection (IAM tokens and other rotating secrets)
    ``timeout_seconds``   for one attempt (connect, or wait for a reply)
    ``deadline_seconds``  for retrying with jitter when the connection breaks, times out, or the node says READONLY; 0: never retry
    ``max_connections``  to one node (in cluster mode with threads: one for each thread); further calls wait for one to come free
    ``options``     anything else goes to valkey-py or pymemcache as it is
    """
    if url.startswith("memcached://"):
        from cachekeep_patterns.topology.memcached import MemcachedCluster

        return MemcachedCluster(url, timeout_seconds=timeout_seconds, **options)
    settings = _settings(url, username, password, token, tls, ca_file, timeout_seconds, options)
    max_connections = settings.pop("max_connections", max_connections)
    settings |= {"retry": DeadlineRetry(deadline_seconds)}
    if cluster:
        # The cluster client has its own loop over nodes; a deadline inside each node's connection would hide a dead node from it.
        return valkey.ValkeyCluster(
            **settings | {"retry": DeadlineRetry(0), "cluster_error_retry_attempts": _attempts(deadline_seconds)},
            read_from_replicas=read_from_replicas,
        )
    settings |= {"retry_on_error": list(RETRIED)}
    wait_seconds = max(deadline_seconds, timeout_seconds)
    if reader is None:
        return bounded(valkey.Valkey(**settings), max_connections, wait_seconds)
    aside = _settings(reader, username, password, token, tls, ca_file, timeout_seconds, options)
    near = valkey.Valkey(**aside, retry=DeadlineRetry(min(deadline_seconds, timeout_seconds)), retry_on_error=list(RETRIED))
    primary = bounded(SplitValkey(**settings), max_connections, wait_seconds)
    return primary.attach(bounded(near, max_connections, wait_seconds), read_your_writes_seconds)


def connect_async(
    url: str,
    *,
    reader: str | None = None,
    cluster: bool = False,
    username: str | None = None,
    password: str | None = None,
    token: Callable[[], str] | None = None,
    tls: bool | None = None,
    ca_file: str | None = None,
    timeout_seconds: float = 1.0,
    deadline_seconds: float = 5.0,
    read_from_replicas: bool = False,
    read_your_writes_seconds: float = 0.0,
    max_connections: int = MAX_CONNECTIONS,
    **options: Any,
) -> Any:
    """The same for asyncio: `valkey.asyncio.Valkey`, `AsyncSplitValkey` or `valkey.asyncio.ValkeyCluster`. Not awaited: it connects
    at the first command. For Memcached see `connect_async_memcached`.
    """
    settings = _settings(url, username, password, token, tls, ca_file, timeout_seconds, options)
    max_connections = settings.pop("max_connections", max_connections)
    wait_seconds = max(deadline_seconds, timeout_seconds)
    if cluster:
        return BoundedCluster(
            **settings,
            retry=AsyncDeadlineRetry(0),
            cluster_error_retry_attempts=_attempts(deadline_seconds),
            read_from_replicas=read_from_replicas,
        ).bound(max_connections, wait_seconds)
    settings |= {"retry": AsyncDeadlineRetry(deadline_seconds), "retry_on_error": list(RETRIED)}
    if reader is None:
        return bounded(valkey.asyncio.Valkey(**settings), max_connections, wait_seconds)
    aside = _settings(reader, username, password, token, tls, ca_file, timeout_seconds, options)
    near = valkey.asyncio.Valkey(
        **aside, retry=AsyncDeadlineRetry(min(deadline_seconds, timeout_seconds)), retry_on_error=list(RETRIED)
    )
    primary = bounded(AsyncSplitValkey(**settings), max_connections, wait_seconds)
    return primary.attach(bounded(near, max_connections, wait_seconds), read_your_writes_seconds)


def _attempts(deadline_seconds: float) -> int:
    """valkey-py's cluster client sleeps 0.25 s and re-reads the slots between attempts (cluster.py, _execute_command)."""
    return max(1, int(deadline_seconds / 0.25))


async def connect_async_memcached(url: str, *, timeout_seconds: float = 1.0, **options: Any) -> Any:
    """An emcache client that follows the configuration endpoint. Needs the `emcache` package."""
    import emcache

    parts = urlsplit(url)
    options = {"autodiscovery": True, "purge_unhealthy_nodes": False} | options
    return await emcache.create_client(
        [emcache.MemcachedHostAddress(parts.hostname or "127.0.0.1", parts.port or 11211)],
        timeout=timeout_seconds,
        connection_timeout=timeout_seconds,
        **options,
    )
