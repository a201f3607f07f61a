"""What both faces of cache-aside share: names, policies, and making requests."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from cachekeep_patterns.aside import Aside, Request
from cachekeep_patterns.codecs import Codec, codec_for
from cachekeep_patterns.dryrun import DryRun
from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.keys import Namespace
from cachekeep_patterns.near import NearCache
from cachekeep_patterns.observe import Counters, Reports, Trouble
from cachekeep_patterns.policy import Breaker, Policy
from cachekeep_patterns.ports import Port
from cachekeep_patterns.stores import store_for
from cachekeep_patterns.write import Write


class Face:
    """What both faces share: names, policies, and making requests.

    ``client``             a valkey-py, redis-py, pymemcache, emcache or GLIDE client (see topology.py), or a Store
    ``namespace``          put before every key; one cache per application and purpose. Without one, keys are the server's own,
                           shared with everybody: only namespaces keep two caches apart (keys.py)
    ``policy``             the default for every call
    ``codec``              "json" (msgspec), "msgpack", "exact", "plain-json", "raw", or an object with encode and decode
    ``near``               a NearCache over the same server
    ``clearable``          `clear()` empties the whole namespace at once; costs every look one more key
    ``breaker``            when to stop asking a cache that does not answer
    ``max_loads``          loads at once in this process; further ones wait ``load_wait_seconds``, then raise Overloaded
    ``dry_run``            touch no cache, always load, and only count what a cache would have saved (`Cache.saved`)
    ``strict``             do not store a value that would come back as another or of another type, and say so; False: a miss
                           answers what a hit would, be it another
    ``on_trouble``         called with every `Trouble`: what was not stored, not decoded, not reached. The logger says it anyway
    """

    _make_port: Callable[[], Port]

    def __init__(
        self,
        client: Any = None,
        *,
        namespace: str = "",
        policy: Policy | None = None,
        codec: Codec | str = "json",
        near: NearCache | None = None,
        clearable: bool = False,
        breaker: Breaker | None = None,
        max_loads: int = 64,
        load_wait_seconds: float = 10.0,
        dry_run: bool = False,
        strict: bool = True,
        on_trouble: Callable[[Trouble], object] | None = None,
    ) -> None:
        self._port = self._make_port()
        self.policy = policy or Policy()
        self.codec = codec_for(codec)
        self.counters = Counters()
        self.namespace = namespace
        self.near = near
        self.saved = DryRun() if dry_run else None
        self._names = Namespace(namespace)
        self._full = self.full = self._names.key
        self.functions: dict[str, Any] = {}
        self._always = (self._names.everything,) if clearable else ()
        if near is not None:
            near.track(self._names.prefix)
        self.near_hit = self.counters.add["near_hits"]
        if client is None and not dry_run:
            raise TypeError("a client is needed, or dry_run=True")
        self._aside = (
            Aside(
                store=store_for(client, blocking=self._port.blocking),
                port=self._port,
                near=near,
                breaker=breaker or Breaker(),
                counters=self.counters,
                reports=Reports(on_trouble),
                max_loads=max_loads,
                load_wait_seconds=load_wait_seconds,
                strict=strict,
            )
            if client is not None
            else cast(Aside, None)
        )

    def tag_keys(self, tags: Iterable[str]) -> tuple[str, ...]:
        return (*self._always, *self._names.tags(tags)) if tags else self._always

    def _request(
        self,
        key: str,
        load: Callable[[], Any],
        tags: Sequence[str],
        policy: Policy | None,
        codec: Codec | None,
    ) -> Request:
        return Request(self._full(key), load, policy or self.policy, self.checked(codec), self.tag_keys(tags))

    def checked(self, codec: Codec | None) -> Codec:
        if isinstance(codec, str):
            raise TypeError(f"codec= is an object here; by name, give it to the cache: codec={codec!r}")
        return codec or self.codec

    def _write(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        lease_seconds: float,
        strict: bool,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Write:
        full = [self._full(key) for key in keys] + self._names.tags(tags)
        return Write(
            self._aside,
            lambda key: self._sized(key, publish_tags, policy, codec),
            list(dict.fromkeys(full)),
            lease_seconds,
            strict,
        )

    def _shortcut(self, tags: Sequence[str], policy: Policy) -> Callable[[Any], Any] | None:
        """The client's own GET or MGET, where a hit needs nothing else."""
        aside = self._aside
        if policy.early_beta or not aside.breaker.closed:
            return None
        return aside.store.quick_many if tags else aside.store.quick

    def _sized(self, key: str, tags: Sequence[str], policy: Policy | None, codec: Codec | None) -> Request:
        """A request that never loads."""
        return self._request(key, no_load, tags, policy, codec)

    @property
    def breaker_closed(self) -> bool:
        """False while the cache is not being asked."""
        return self._aside.breaker.closed


def no_load() -> None:
    raise AssertionError("this request is only written")


def many(
    face: Face,
    names: Mapping[str, str],
    load_many: Callable[[list[str]], Any],
    tags: Sequence[str],
    policy: Policy | None,
    codec: Codec | None,
) -> tuple[list[Request], Callable[[list[str]], Any]]:
    """A request per key (each able to load itself alone), and the loader of several."""

    def alone(name: str) -> Callable[[], Any]:
        def load() -> Any:
            loaded = load_many([name])
            return _pick(loaded, name) if inspect.isawaitable(loaded) else loaded.get(name)

        return load

    return [face._request(name, alone(name), tags, policy, codec) for name in names.values()], load_many


async def _pick(loading: Awaitable[Mapping[str, Any]], name: str) -> Any:
    return (await loading).get(name)


def check_clearable(face: Face) -> None:
    if not face._always:
        raise CacheDown("this cache was not made with clearable=True; its entries do not hang on the namespace")
