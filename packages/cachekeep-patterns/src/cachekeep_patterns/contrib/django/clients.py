"""valkey-py clients from Django's settings: one per process for sync code, one per event loop for async code."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import valkey
import valkey.asyncio

from ...topology.bounds import BoundedCluster, bounded
from ...topology.factory import MAX_CONNECTIONS
from ...topology.retry import RETRIED, AsyncDeadlineRetry, DeadlineRetry


class Clients:
    """`url` as valkey-py reads it; `cluster` for cluster mode; `options` go to the client.

    `deadline_seconds`: for how long a command is sent again while a failover is under way (connection lost, READONLY); 0 for a
    caller that does so itself. `max_connections`: of each client.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: bool = False,
        options: Mapping[str, Any] | None = None,
        deadline_seconds: float = 0.0,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._url = url
        self._cluster = cluster
        self._options = {"socket_timeout": 2, "socket_connect_timeout": 2, **(options or {})}
        self._deadline_seconds, self._max_connections = deadline_seconds, max_connections
        self._wait_seconds = max(2.0, deadline_seconds)
        self._lock = threading.Lock()
        self._sync: Any = None
        # Under WSGI every request of an async view has its own loop, and connections belong to a loop.
        self._by_loop: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[None, None]]] = {}

    def _retries(self, retry: Any) -> dict[str, Any]:
        return {"retry": retry(self._deadline_seconds), "retry_on_error": list(RETRIED)} if self._deadline_seconds else {}

    def sync(self) -> Any:
        with self._lock:
            if self._sync is None:
                if self._cluster:
                    kind: Any = valkey.ValkeyCluster
                    self._sync = kind.from_url(self._url, **self._options)
                else:
                    client = valkey.Valkey.from_url(self._url, **self._retries(DeadlineRetry) | self._options)
                    self._sync = bounded(client, self._max_connections, self._wait_seconds)
            return self._sync

    def for_loop(self) -> Any:
        """The running loop's client, which is closed with the loop. Raises RuntimeError outside of a loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._by_loop:
                for closed in [one for one in self._by_loop if one.is_closed()]:  # whoever closed it skipped its generators
                    del self._by_loop[closed]
                client = self._make()
                closer = self._close_with(loop, client)
                with contextlib.suppress(StopIteration):
                    closer.__anext__().send(None)  # to its yield; the loop then knows it, and ends it as the loop ends
                self._by_loop[loop] = (client, closer)
            return self._by_loop[loop][0]

    def _make(self) -> Any:
        if self._cluster:
            kind: Any = BoundedCluster
            return kind.from_url(self._url, **self._options).bound(self._max_connections, self._wait_seconds)
        client = valkey.asyncio.Valkey.from_url(self._url, **self._retries(AsyncDeadlineRetry) | self._options)
        return bounded(client, self._max_connections, self._wait_seconds)

    async def _close_with(self, loop: asyncio.AbstractEventLoop, client: Any) -> AsyncGenerator[None, None]:
        """Lives as long as the loop: `shutdown_asyncgens`, which `asyncio.run` and asgiref call, ends it."""
        try:
            yield
        finally:
            with self._lock:
                self._by_loop.pop(loop, None)
            await client.aclose()
