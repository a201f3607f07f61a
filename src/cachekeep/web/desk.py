"""What only the command line asks for: how everything is, what a planner would do now, a failover by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from cachekeep.clock import Clock
from cachekeep.control import Observer
from cachekeep.control.explain import explain
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import Unsealable
from cachekeep.model import Cache
from cachekeep.plan import Policy
from cachekeep.services import Services
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


class Desk:
    """Answers the command line. ``reload`` looks for engines again and returns what it found; ``lacks`` says what cannot be had on
    this machine for nodes that fail over."""

    def __init__(
        self,
        *,
        services: Services,
        observer: Observer,
        clock: Clock,
        policy: Policy,
        version: str,
        catalogue: Callable[[], Catalogue],
        reload: Callable[[], Awaitable[Catalogue]],
        lacks: Callable[[], tuple[str, ...]],
    ) -> None:
        self._services, self._observer, self._clock, self._policy = services, observer, clock, policy
        self._version, self._catalogue, self._reload, self._lacks = version, catalogue, reload, lacks

    def health(self) -> Mapping[str, Any]:
        """For load balancers and waiting scripts."""
        return {"ok": True, "version": self._version, "engines": [f"{b.engine} {b.version}" for b in self._catalogue().builds]}

    def greeting(self) -> str:
        """For people who point a browser at the endpoint."""
        return (
            f"Cachekeep {self._version}: the ElastiCache API over real Valkey, Redis and Memcached servers.\n"
            "\n"
            "This is the endpoint URL for AWS SDKs and tools. In a shell:\n"
            "\n"
            '    eval "$(cachekeep env)"\n'
            "    aws elasticache describe-replication-groups\n"
        )

    async def answer(self, call: Call) -> Mapping[str, Any]:
        """Answer a call of the command line. Raises ApiError."""
        said = await self._services.dispatch(call)
        match call.operation:
            case "status":
                engines = {c["engine"] for c in said["caches"]}
                of_nodes = self._catalogue().lacks if "memcached" in engines else ()
                of_machine = self._lacks() if engines - {"memcached"} else ()
                return {"version": self._version, "lacks": (*of_nodes, *of_machine), **said}
            case "explain":
                return await self._explain(said["cache"])
            case "reload":
                return {"engines": [f"{b.engine} {b.version}" for b in (await self._reload()).builds]}
        return said

    async def _explain(self, cache: Cache) -> Mapping[str, Any]:
        try:
            return msgspec.structs.asdict(await explain(cache, self._observer, self._clock, self._policy))
        except Unsealable as error:
            raise ApiError("ServiceUnavailable", f"{error}.", status=503) from None
