"""What only the command line asks for: how everything is, what a planner would do now, a failover by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.control import Observer
from cachekeep.control.explain import explain
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import ApiError
from cachekeep.model import Cache, Condition, Errand, Event
from cachekeep.plan import Policy
from cachekeep.store.contract import Store, Transaction

SERVICE: Final = "cachekeep"
"""The service that a signature for the desk is scoped to."""
_BATCH: Final = 200


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """One cache, by group id or cache cluster id, after ``group/`` or ``cluster/`` where both are;
    all of them where that is allowed."""

    name: str = ""


class FailoverAsked(msgspec.Struct, forbid_unknown_fields=True):
    """A failover by hand. ``to`` names the next primary; else the best replica takes over and the primary is replaced."""

    name: str
    shard: str | None = None
    to: str | None = None
    allow_data_loss: bool = False


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """A sentence for the events of a cache."""

    name: str
    message: str


class Desk:
    """Answers the command line. ``reload`` looks for engines again and returns what it found."""

    def __init__(
        self,
        *,
        store: Store,
        observer: Observer,
        clock: Clock,
        policy: Policy,
        version: str,
        catalogue: Callable[[], Catalogue],
        reload: Callable[[], Any],
    ) -> None:
        self._store, self._observer, self._clock, self._policy = store, observer, clock, policy
        self._version, self._catalogue, self._reload = version, catalogue, reload

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

    async def answer(self, call: str, body: bytes) -> Mapping[str, Any]:
        """Answer a call of the command line. Raises ApiError."""
        match call:
            case "status":
                return await self._status(_read(body, Named).name)
            case "explain":
                return await self._explain(_read(body, Named).name)
            case "failover":
                return await self._failover(_read(body, FailoverAsked))
            case "tell":
                return await self._tell(_read(body, Told))
            case "reload":
                found: Catalogue = await self._reload()
                return {"engines": [f"{b.engine} {b.version}" for b in found.builds]}
        raise ApiError("InvalidAction", f"There is no {call[:40]} here.", status=404)

    async def _status(self, name: str) -> Mapping[str, Any]:
        async with self._store.reading() as tx:
            caches = [await _find(tx, name)] if name else await _all(tx)
            conditions = await tx.conditions([c.uid for c in caches])
        return {"version": self._version, "caches": [_shown(c, conditions.get(c.uid)) for c in caches]}

    async def _explain(self, name: str) -> Mapping[str, Any]:
        async with self._store.reading() as tx:
            cache = await _find(tx, name)
        found = await explain(cache, self._observer, self._clock, self._policy)
        return msgspec.structs.asdict(found)

    async def _tell(self, told: Told) -> Mapping[str, Any]:
        async with self._store.transaction() as tx:
            cache = await _find(tx, told.name)
            kind: Any = "replication-group" if cache.kind == "group" else "cache-cluster"
            await tx.tell(Event(source_type=kind, source=cache.name, message=told.message[:1000]))
        return {}

    async def _failover(self, asked: FailoverAsked) -> Mapping[str, Any]:
        async with self._store.transaction() as tx:
            cache = await _find(tx, asked.name)
            errand, told = _errand(cache, asked)
            if any(
                e.serial > cache.decided.errands_done and replace(e, serial=errand.serial) == errand for e in cache.wanted.errands
            ):
                return {"because": f"{told} (asked already, not done yet)"}
            left = tuple(e for e in cache.wanted.errands if e.serial > cache.decided.errands_done)
            await tx.save_wanted(replace(cache, wanted=replace(cache.wanted, errands=(*left, errand))))
            kind: Any = "replication-group" if cache.kind == "group" else "cache-cluster"
            await tx.tell(Event(source_type=kind, source=cache.name, message=f"By hand: {told}"))
            tx.wake(cache.uid)
        return {"because": told}


def _errand(cache: Cache, asked: FailoverAsked) -> tuple[Errand, str]:
    """What is to be done once, and how to say it. Raises ApiError for what cannot be."""
    if cache.wanted.engine == "memcached":
        raise ApiError("InvalidParameterValue", f"{cache.name} runs memcached, which has no primaries.")
    if cache.wanted.deleted:
        raise ApiError("InvalidParameterValue", f"{cache.name} is being deleted.")
    ids = [s.id for s in cache.decided.shards]
    node = (cache.member(asked.to) or cache.node(asked.to)) if asked.to else None
    if asked.to and node is None:
        raise ApiError(
            "InvalidParameterValue", f"{cache.name} has no node {asked.to}: {', '.join(n.name for n in cache.decided.nodes)}"
        )
    shard_id = asked.shard.zfill(4) if asked.shard else node.shard if node else ids[0] if len(ids) == 1 else None
    if shard_id is None:
        raise ApiError(
            "InvalidParameterValue", f"{cache.name} has {len(ids)} shards; name one with --shard: {', '.join(ids) or 'none'}"
        )
    shard = cache.shard(shard_id)
    if shard is None or (node is not None and node.shard != shard_id):
        raise ApiError(
            "InvalidParameterValue", f"{asked.to or cache.name} has no shard {shard_id}: {', '.join(ids) or 'none is decided yet'}"
        )
    serial = max([cache.decided.errands_done, *(e.serial for e in cache.wanted.errands)]) + 1
    if asked.allow_data_loss:
        told = f"shard {shard_id} may promote a node that lacks writes, which are lost then"
        return Errand(serial=serial, kind="promote-stale", shard=shard_id), told
    if node is not None:
        if node.name == shard.primary:
            raise ApiError("InvalidParameterValue", f"{node.name} is the primary of shard {shard_id} already.")
        return Errand(
            serial=serial, kind="promote", nodes=(node.member,), shard=shard_id
        ), f"{node.name} shall lead shard {shard_id}"
    if len([n for n in cache.decided.nodes if n.shard == shard_id and not n.leaving]) < 2:
        raise ApiError("InvalidParameterValue", f"shard {shard_id} of {cache.name} has no replica that could take over.")
    return Errand(serial=serial, kind="test-failover", shard=shard_id), f"the best replica shall lead shard {shard_id}"


def _read(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise ApiError("InvalidParameterValue", str(error)) from None


async def _find(tx: Transaction, name: str) -> Cache:
    """Replication groups and cache clusters have names of their own, so one name may be of two caches [ARNs: one kind for each].

    Raises ApiError.
    """
    name = name.lower()
    kind, _, bare = name.rpartition("/")
    found = {"group": await tx.cache(bare, "group"), "cluster": await tx.cache_of(bare)}
    caches = {c.uid: c for k, c in found.items() if c is not None and kind in ("", k)}
    if len(caches) > 1:
        raise ApiError(
            "InvalidParameterValue",
            f"{bare} is the name of a replication group and of a cache cluster: say group/{bare} or cluster/{bare}.",
        )
    for cache in caches.values():
        return cache
    raise ApiError("NotFound", f"There is no cache {name!r}. `cachekeep status` lists those that are there.", status=404)


async def _all(tx: Transaction) -> list[Cache]:
    found: list[Cache] = []
    for kind in ("group", "cluster"):
        after = ""
        while batch := await tx.caches(kind=kind, after=after, limit=_BATCH):
            found += batch
            after = batch[-1].name
    return found


def _shown(cache: Cache, condition: Condition | None) -> Mapping[str, Any]:
    decided, wanted = cache.decided, cache.wanted
    seen = {n.name: n for n in condition.nodes} if condition else {}
    return {
        "name": cache.name,
        "full_name": f"{cache.kind}/{cache.name}",
        "kind": cache.kind,
        **_running(cache),
        "status": condition.status
        if condition
        else "deleting"
        if wanted.deleted
        else "creating"
        if not decided.available_at
        else "unknown",
        "because": condition.because if condition else "its keeper has not looked yet",
        "refused": bool(condition and condition.refused),
        "endpoints": _endpoints(cache),
        "shards": [{"id": x.id, "slots": x.owned or x.slots} for x in decided.shards],
        "nodes": [
            {
                "name": n.name,
                "member": n.member,
                "shard": n.shard,
                "zone": n.zone,
                "endpoint": f"{n.address}:{n.port}",
                **(msgspec.to_builtins(replace(seen[n.name], name=n.name)) if n.name in seen else {"status": "unknown"}),
            }
            for n in decided.nodes
        ],
    }


def _running(cache: Cache) -> Mapping[str, Any]:
    """What is decided for the nodes, and beside it what they shall become: a change may wait for the window, or be half done."""
    wanted = cache.wanted
    shall: dict[str, tuple[str, ...]] = {"engine": (wanted.engine, wanted.version), "node_type": (wanted.node_type,)}
    nodes = [n for n in cache.decided.nodes if not n.leaving] or cache.decided.nodes
    have: dict[str, list[tuple[str, ...]]] = {
        "engine": [(n.engine, n.version) for n in nodes],
        "node_type": [(n.node_type,) for n in nodes],
    }
    now = {what: next((h for h in have[what] if h != shall[what]), shall[what]) for what in shall}
    field = {"engine": "version", "node_type": "node_type"}
    return {
        "engine": now["engine"][0],
        "version": now["engine"][1],
        "node_type": now["node_type"][0],
        "pending": [
            {"what": what, "from": " ".join(now[what]), "to": " ".join(shall[what]), "in_window": field[what] in wanted.deferred}
            for what in shall
            if now[what] != shall[what]
        ],
    }


def _endpoints(cache: Cache) -> Mapping[str, str]:
    decided, port = cache.decided, cache.wanted.port
    found: dict[str, str] = {}
    for shard in decided.shards:
        suffix = f" {shard.id}" if len(decided.shards) > 1 else ""
        if shard.primary_address:
            found[f"primary{suffix}"] = f"{shard.primary_address}:{port}"
        if shard.reader_address:
            found[f"reader{suffix}"] = f"{shard.reader_address}:{port}"
    for front in decided.fronts:
        if front.kind == "balancer":
            found["reader"] = f"{front.address}:{front.port}"
    if decided.configuration_address:
        found["configuration"] = f"{decided.configuration_address}:{port}"
    return found
