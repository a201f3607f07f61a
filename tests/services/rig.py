"""An endpoint in memory with an unmodified boto3 in front of it, and a keeper by hand behind it."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from msgspec.structs import replace

from cachekeep.clock import SystemClock
from cachekeep.engines.catalogue import Build, Catalogue
from cachekeep.metrics.series import Archive
from cachekeep.model import (
    UNKNOWN,
    Cache,
    Condition,
    Confirmed,
    Decided,
    Done,
    Event,
    Front,
    Job,
    Moment,
    Node,
    NodeCondition,
    ParameterGroup,
    Shard,
    ShardCopy,
    SnapshotEnd,
    fingerprint,
)
from cachekeep.plan.slots.ranges import Ranges, even, rebalance
from cachekeep.plan.snapshots import nodes_of
from cachekeep.security.access_keys import Credentials, Issuer
from cachekeep.security.sealing import Sealing
from cachekeep.security.sigv4 import AccessKey
from cachekeep.services import SERVICES, Services, ServiceSettings
from cachekeep.store import MemoryStore, Store
from cachekeep.store.contract import Along, Lease
from cachekeep.wire.gateway import Gateway
from cachekeep.wire.http import HttpRequest

T = TypeVar("T")

CATALOGUE = Catalogue(
    builds=(
        Build(engine="memcached", version="1.6.18", server="/usr/bin/memcached", tls=True),
        Build(engine="redis", version="6.2.14", server="/opt/redis6/redis-server", tls=True),
        Build(engine="redis", version="7.0.15", server="/usr/bin/redis-server", tls=True),
        Build(engine="valkey", version="8.0.1", server="/usr/bin/valkey-server", tls=True),
        Build(engine="valkey", version="9.1.2", server="/opt/valkey9/valkey-server"),
    )
)
ACCOUNT = "000000000000"
SETTINGS = ServiceSettings(
    region="us-east-1",
    account=ACCOUNT,
    zones=("us-east-1a", "us-east-1b", "us-east-1c"),
    address_pool="127.77.0.0/16",
    capacity_memory_bytes=0,
    overcommit=True,
    hold_seconds=0,
    buckets=frozenset({"dumps"}),
    issuer=Issuer(b"for tests", ACCOUNT),
)
ROOT_KEY = ("AKIDEXAMPLE", "secret")
"""With which requests are signed."""


class SetClock(SystemClock):
    """Time that can be moved: the wall clock alone, as somebody sets it, or all clocks, as time goes by."""

    def __init__(self) -> None:
        self.ahead = dt.timedelta()
        self.passed = dt.timedelta()

    def now(self) -> dt.datetime:
        return super().now() + self.ahead + self.passed

    def moment(self) -> Moment:
        at = super().moment()
        return Moment(at.boot, at.seconds + self.passed.total_seconds())

    def monotonic(self) -> float:
        return super().monotonic() + self.passed.total_seconds()


class Refused(AssertionError):
    """What ``refused`` returns: code, message and status of an error."""

    def __init__(self, error: ClientError) -> None:
        self.code = error.response["Error"]["Code"]
        self.message = error.response["Error"]["Message"]
        self.status = error.response["ResponseMetadata"]["HTTPStatusCode"]


_idle_clients: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
"""(service, region) → boto3 clients of rigs that are closed: making one takes longer than most tests."""


class Rig:
    """The endpoint. ``keep`` does what keepers do, at once; until then every change is under way."""

    def __init__(
        self,
        settings: ServiceSettings = SETTINGS,
        catalogue: Catalogue = CATALOGUE,
        store: Store | None = None,
        auth: Literal["enforce", "open"] = "open",
        archive: Archive | None = None,
    ) -> None:
        self.clock = SetClock()
        self.loop = asyncio.new_event_loop()
        self.settings = settings
        self.store = store or MemoryStore(self.clock)
        self.run(self.store.open())
        self.services = Services(SERVICES, self.store, catalogue, settings, self.clock, Sealing(bytes(32)), archive=archive)
        self.gateway = Gateway(
            served=self.services.served(),
            credentials=Credentials(ROOT_KEY[0], AccessKey(ROOT_KEY[1], f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT), settings.issuer),
            clock=self.clock,
            auth=auth,
            region=settings.region,
            account=settings.account,
            dispatch=self.services.dispatch,
        )
        self.keeper = Keeper(self.store, self.clock)
        self._clients: list[tuple[str, Any]] = []
        self.cache = self.client("elasticache")

    def close(self) -> None:
        for service, client in self._clients:
            client.meta.events.unregister("before-send", self._send)
            _idle_clients[service, self.settings.region].append(client)
        self.services.close()
        self.run(self.store.aclose())
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def client_of(self, service: str, access_key: str, secret_key: str, token: str | None = None) -> Any:
        """A client that signs with another key, or with temporary credentials."""
        client = self._new_client(service, access_key, secret_key, token)
        client.meta.events.register("before-send", self._send)
        return client

    def client(self, service: str) -> Any:
        idle = _idle_clients[service, self.settings.region]
        client = idle.pop() if idle else self._new_client(service)
        client.meta.events.register("before-send", self._send)
        self._clients.append((service, client))
        return client

    def _new_client(
        self, service: str, access_key: str = ROOT_KEY[0], secret_key: str = ROOT_KEY[1], token: str | None = None
    ) -> Any:
        return boto3.client(
            service,
            region_name=self.settings.region,
            endpoint_url="http://127.0.0.1:8379",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            aws_session_token=token,
            config=Config(retries={"max_attempts": 1, "mode": "standard"}, parameter_validation=False),
        )

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        """botocore's request answered by the gateway instead of a socket."""
        parts = urlsplit(request.url)
        body = request.body or b""
        answer = self.run(
            self.gateway.handle(
                HttpRequest(
                    method=request.method,
                    path=parts.path or "/",
                    query=parts.query,
                    headers={"host": parts.netloc}
                    | {
                        key.lower(): value.decode() if isinstance(value, bytes) else str(value)
                        for key, value in request.headers.items()
                    },
                    body=body.encode() if isinstance(body, str) else body,
                    client="127.0.0.1",
                )
            )
        )
        return AWSResponse(request.url, answer.status, dict(answer.headers), _Raw(answer.body))

    def keep(self, **changed: Any) -> None:
        """Let the keeper bring everything to where it is wanted."""
        self.run(self.keeper.settle_all(**changed))

    def stored(self, name: str) -> Cache:
        """The row of a group or a stand-alone cluster."""

        async def find() -> Cache | None:
            async with self.store.reading() as tx:
                return await tx.cache(name, "group") or await tx.cache(name, "cluster")

        found = self.run(find())
        assert found is not None
        return found

    def stored_group(self, name: str) -> ParameterGroup:
        """The row of a custom parameter group."""

        async def find() -> ParameterGroup | None:
            async with self.store.reading() as tx:
                return await tx.get(ParameterGroup, name)

        found = self.run(find())
        assert found is not None
        return found

    def told(self) -> list[Event]:
        """Every event, oldest first."""

        async def read() -> list[Event]:
            async with self.store.reading() as tx:
                return [event for _, event in await tx.events(limit=1000)]

        return self.run(read())

    # ---- short cuts

    def group(self, name: str = "demo", *, keep: bool = True, **more: Any) -> dict[str, Any]:
        """A valkey group, as its create call answered."""
        settings = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro", "NumCacheClusters": 2} | more
        if settings["Engine"] == "valkey":  # the newest that is safe is the default, and not what these tests are about
            settings = {"EngineVersion": "8.0"} | settings
        settings = {key: value for key, value in settings.items() if value is not None}
        found = self.cache.create_replication_group(ReplicationGroupId=name, ReplicationGroupDescription="d", **settings)
        if keep:
            self.keep()
        return found["ReplicationGroup"]

    def memcached(self, name: str = "mc", nodes: int = 3, *, keep: bool = True, **more: Any) -> dict[str, Any]:
        settings = {"Engine": "memcached", "CacheNodeType": "cache.t3.micro", "NumCacheNodes": nodes} | more
        found = self.cache.create_cache_cluster(CacheClusterId=name, **settings)
        if keep:
            self.keep()
        return found["CacheCluster"]

    def single(self, name: str = "one", *, keep: bool = True, **more: Any) -> dict[str, Any]:
        settings = {"Engine": "valkey", "CacheNodeType": "cache.t3.micro", "NumCacheNodes": 1} | more
        found = self.cache.create_cache_cluster(CacheClusterId=name, **settings)
        if keep:
            self.keep()
        return found["CacheCluster"]

    def show(self, name: str = "demo") -> dict[str, Any]:
        return self.cache.describe_replication_groups(ReplicationGroupId=name)["ReplicationGroups"][0]

    def show_cluster(self, name: str) -> dict[str, Any]:
        return self.cache.describe_cache_clusters(CacheClusterId=name, ShowCacheNodeInfo=True)["CacheClusters"][0]

    def arn(self, kind: str, name: str) -> str:
        return f"arn:aws:elasticache:us-east-1:{ACCOUNT}:{kind}:{name}"


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        while chunk := self.read(65536):
            yield chunk


def refused(call: Callable[..., Any], **params: Any) -> Refused:
    """The error of a call that must fail."""
    try:
        answer = call(**params)
    except ClientError as error:
        return Refused(error)
    raise AssertionError(f"not refused: {answer}")


class Keeper:
    """Decides what is wanted, with addresses of its own, and reports it as done: a keeper in a world where everything works."""

    def __init__(self, store: Store, clock: SystemClock) -> None:
        self._store = store
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._addresses = 0

    async def settle_all(self, **changed: Any) -> None:
        for lease in await self._store.claim("keeper", ttl_seconds=86400 * 365):
            self._leases[lease.uid] = lease
        for uid, lease in list(self._leases.items()):
            cache = await self._store.load(uid)
            if cache is None:
                del self._leases[uid]
            elif cache.ending:
                await self._store.forget(cache, lease)
            else:
                await self.settle(cache, lease, **changed)
                if cache.wanted.deleted and (left := await self._store.load(uid)) is not None:
                    await self._store.forget(left, lease)

    async def settle(self, cache: Cache, lease: Lease, **changed: Any) -> None:
        decided = self._decide(cache)
        used = {n.address for n in decided.nodes} | {a for s in decided.shards for a in (s.primary_address, s.reader_address) if a}
        if decided.configuration_address:
            used.add(decided.configuration_address)
        if decided != cache.decided:
            records = [self._taken(cache, e.snapshot) for e in cache.errands_left if e.kind == "snapshot"]
            cache = await self._store.save_decided(replace(cache, decided=decided), lease, Along(records=records, addresses=used))
        nodes = tuple(NodeCondition(name=n.name, status="available") for n in decided.nodes)
        condition = Condition(status="available", because="all is well", settled=True, nodes=nodes, version=cache.version)
        condition = replace(condition, clients_told=fingerprint(cache.wanted.clients))
        await self._store.publish(cache.uid, replace(condition, **changed), lease)

    def _taken(self, cache: Cache, uid: str) -> SnapshotEnd:
        now, size = self._clock.now(), {"size_bytes": 1000, "used_bytes": 3 << 20}
        copies = (ShardCopy(shard=n.shard, node=n.cluster_id, **size, taken_at=now) for n in nodes_of(cache))
        return SnapshotEnd(name=uid, at=now, copies=tuple(copies))

    async def save(self, cache: Cache) -> None:
        """Decide just this."""
        used = {n.address for n in cache.decided.everyone}
        await self._store.save_decided(cache, self._leases[cache.uid], Along(addresses=used))

    def _decide(self, cache: Cache) -> Decided:
        """Everything that is wanted now, but for what waits for a window."""
        wanted, before = cache.wanted, cache.decided
        enabling = wanted.cluster_mode == "enabled" and bool(before.nodes) and not cache.clustered
        nodes = []
        if "shards" in wanted.deferred:
            members = [(n.shard, n.name, n.zone) for n in before.nodes]
        else:
            members = [(s.id, m.name, m.zone) for s in wanted.shards for m in s.members]
        for shard, name, zone in members:
            old = None if enabling else cache.member(name)
            nodes.append(
                Node(
                    name=old.name if old else f"{name}.cluster" if enabling else name,
                    in_place_of=name if enabling or (old and old.in_place_of) else "",
                    shard=shard,
                    zone=zone,
                    address=old.address if old else self._address(),
                    port=wanted.port,
                    engine=old.engine if old and "version" in wanted.deferred else wanted.engine,
                    version=old.version if old and "version" in wanted.deferred else wanted.version,
                    node_type=old.node_type if old and "node_type" in wanted.deferred else wanted.node_type,
                    announced=True,
                    created_at=old.created_at if old else self._clock.now(),
                )
            )
        dealt = self._deal(cache)
        shards = []
        for s in wanted.shards:
            old_shard = cache.shard(s.id)
            names = [n.name for n in nodes if n.shard == s.id]
            primary = old_shard.primary if old_shard and old_shard.primary in names else names[0]
            for errand in wanted.errands:
                if errand.kind == "promote" and errand in cache.errands_left:
                    primary = errand.nodes[0]
            shard = old_shard or Shard(id=s.id)
            if wanted.cluster_mode == "enabled":
                shard = replace(shard, primary_address=None, reader_address=None)
            elif cache.kind == "group" and not shard.primary_address:
                shard = replace(shard, primary_address=self._address(), reader_address=self._address())
            has = dealt.get(s.id, ())
            leads = primary if wanted.engine != "memcached" else None
            in_sync = frozenset(names) - {leads} if leads else frozenset[str]()
            confirmed = Confirmed(primary=leads, order=shard.lead_order, nodes=in_sync)
            shards.append(replace(shard, primary=leads, confirmed=confirmed, slots=has, owned=has))
        configuration = before.configuration_address
        if wanted.engine == "memcached" and configuration is None:
            configuration = self._address()
        fronts = tuple(f for f in before.fronts if f.kind != "compatible")
        if wanted.cluster_mode == "compatible":
            configuration = configuration or self._address()
            fronts += (Front(name="configuration", kind="compatible", address=configuration, port=wanted.port),)
        elif fronts != before.fronts and not enabling:
            configuration = None
        return replace(
            before,
            nodes=tuple(nodes),
            transit=wanted.transit,
            mode="enabled" if wanted.cluster_mode == "enabled" else "disabled",
            shards=tuple(shards),
            fronts=fronts,
            configuration_address=configuration,
            jobs=tuple(Job(id=e.id, work=e, began_at=UNKNOWN, deadline_seconds=60.0, state=Done()) for e in wanted.errands),
            available_at=before.available_at or self._clock.now(),
        )

    @staticmethod
    def _deal(cache: Cache) -> dict[str, Ranges]:
        """Slots of each shard: as asked for, as they are, or evenly when shards come and go or are to be dealt out anew."""
        asked, has = ({s.id: s.slots for s in shards} for shards in (cache.wanted.shards, cache.decided.shards))
        anew = any(e.kind == "rebalance" for e in cache.errands_left)
        if cache.wanted.cluster_mode != "enabled" or (not has and all(asked.values())):
            return asked
        if not any(has.values()):
            return even(list(asked))
        return has if has.keys() == asked.keys() and not anew else rebalance(has, list(asked))

    def _address(self) -> str:
        self._addresses += 1
        return f"127.77.{self._addresses // 250}.{self._addresses % 250 + 1}"
