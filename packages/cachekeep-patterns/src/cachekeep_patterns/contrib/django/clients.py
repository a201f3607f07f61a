"""valkey-py clients from Django's settings: one per process for sync code, one per event loop for async code."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import valkey
import valkey.asyncio


class Clients:
    """`url` as valkey-py reads it; `cluster` for cluster mode; `options` go to the client."""

    def __init__(self, url: str, *, cluster: bool = False, options: Mapping[str, Any] | None = None) -> None:
        self._url = url
        self._cluster = cluster
        self._options = {"socket_timeout": 2, "socket_connect_timeout": 2, **(options or {})}
        self._lock = threading.Lock()
        self._sync: Any = None
        # Under WSGI every request of an async view has its own loop, and connections belong to a loop.
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()

    def sync(self) -> Any:
        with self._lock:
            if self._sync is None:
                make = valkey.ValkeyCluster.from_url if self._cluster else valkey.Valkey.from_url
                self._sync = make(self._url, **self._options)
            return self._sync

    def for_loop(self) -> Any:
        """The running loop's client. Raises RuntimeError outside of a loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._by_loop:
                kind = valkey.asyncio.ValkeyCluster if self._cluster else valkey.asyncio.Valkey
                self._by_loop[loop] = kind.from_url(self._url, **self._options)
            return self._by_loop[loop]
