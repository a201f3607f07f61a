"""The two faces of cache-aside: `Cache` blocks, `AsyncCache` awaits. Same words, same semantics (aside.py)."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ParamSpec, TypeVar, cast

from cachekeep_patterns.aside import UNASKED, Aside, Request
from cachekeep_patterns.codecs import Codec, codec_for
from cachekeep_patterns.dryrun import DryRun
from cachekeep_patterns.errors import CacheDown
from cachekeep_patterns.functions import AsyncCachedFunction, CachedFunction, Key, Tags
from cachekeep_patterns.keys import Namespace
from cachekeep_patterns.many import get_many
from cachekeep_patterns.near import MISS, NearCache
from cachekeep_patterns.observe import Counters, Reports, Trouble
from cachekeep_patterns.policy import Breaker, Policy
from cachekeep_patterns.ports import Loop, Port, Threads, run
from cachekeep_patterns.stores import store_for
from cachekeep_patterns.write import Write

T = TypeVar("T")
P = ParamSpec("P")


class _Face:
    """What both faces share: names, policies, and making requests.

    ``client``             a valkey-py, redis-py, pymemcache, emcache or GLIDE client (see topology.py), or a Store
    ``namespace``          put before every key; one cache per application and purpose. Without one, keys are the server's own,
                           shared with everybody: only namespaces keep two caches apart (keys.py)
    ``policy``             the default for every call
    ``codec``              "json" (msgspec), "msgpack", "plain-json", "raw", or an object with encode and decode
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
        self._full = self._names.key
        self._always = (self._names.everything,) if clearable else ()
        if near is not None:
            near.track(self._names.prefix)
        self._near_hit = self.counters.add["near_hits"]
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
        self._quick = self._shortcut()

    def _tag_keys(self, tags: Iterable[str]) -> tuple[str, ...]:
        return (*self._always, *self._names.tags(tags)) if tags else self._always

    def _request(
        self,
        key: str,
        load: Callable[[], Any],
        tags: Sequence[str],
        policy: Policy | None,
        codec: Codec | None,
        arrived: int = 0,
    ) -> Request:
        return Request(self._full(key), load, policy or self.policy, codec or self.codec, self._tag_keys(tags), arrived)

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
            lambda key: self._request(key, _no_load, publish_tags, policy, codec),
            list(dict.fromkeys(full)),
            lease_seconds,
            strict,
        )

    def _shortcut(self) -> Callable[[str], Any] | None:
        """The client's own GET, where a hit needs nothing else."""
        plain = self.near is None and not self._always and not self.policy.early_beta
        return self._aside.store.quick if plain and self._aside is not None else None

    @property
    def breaker_closed(self) -> bool:
        """False while the cache is not being asked."""
        return self._aside.breaker.closed


def _no_load() -> None:
    raise AssertionError("this request is only written")


class Cache(_Face):
    __doc__ = f"""Cache-aside for threads. Any number of threads may share one.\n{_Face.__doc__}"""

    _make_port = Threads

    def get(
        self,
        key: str,
        load: Callable[[], T],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T:
        """The value of ``key``, by ``load()`` if need be. Raises what the loader raises, LoadTimeout, Overloaded."""
        if self.saved is not None:
            return cast(T, run(self.saved.measure(self._port, key, load, policy or self.policy)))
        known, arrived = UNASKED, 0
        if self._quick is not None and policy is None and not tags and self._aside.breaker.closed:
            full, arrived = self._full(key), next(self._aside.ticks)
            try:
                known = self._quick(full)
            except self._aside.trouble as error:
                known = error
            value = self._aside.fresh(known, codec or self.codec, full)
            if value is not MISS:
                return cast(T, value)
        elif self.near is not None:
            near = self.near.peek(self._full(key))
            if near is not MISS:
                self._near_hit()
                return cast(T, near)
        return cast(T, run(self._aside.get(self._request(key, load, tags, policy, codec, arrived), known)))

    def get_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[list[str]], Mapping[str, T]],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> dict[str, T | None]:
        """Several values with one look and one load of all that is missing. What ``load_many`` leaves out is None."""
        names = {self._full(key): key for key in keys}
        requests, load = _many(self, names, load_many, tags, policy, codec)
        if self.saved is not None:
            return cast("dict[str, T | None]", dict(load_many(list(names.values()))))
        found = run(get_many(self._aside, requests, load, names))
        return {names[full]: value for full, value in found.items()}

    def invalidate(self, *keys: str, tags: Iterable[str] = ()) -> None:
        """From now on nobody gets what was loaded before now; loads under way will not be stored. Raises CacheDown."""
        if self.saved is not None:
            self.saved.forget(keys)
            return
        run(self._aside.invalidate([*map(self._full, keys), *self._names.tags(tags)]))

    def clear(self) -> None:
        """Invalidate the whole namespace in one step (``clearable=True``)."""
        _check_clearable(self)
        run(self._aside.invalidate(self._always))

    def writing(
        self,
        *keys: str,
        tags: Sequence[str] = (),
        lease_seconds: float = 10.0,
        strict: bool = False,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
    ) -> AbstractContextManager[Write]:
        """A `with` block around a database transaction: barriers up, block, barriers down. See write.py for every failure.

        ``tags`` are invalidated by the write; ``publish_tags`` are those the published entries hang on.
        """
        return _writing(self._write(keys, tags, lease_seconds, strict, publish_tags, policy))

    def write(self, key: str, save: Callable[[], T], *, tags: Sequence[str] = (), strict: bool = False) -> T:
        """Write-through: ``save()`` commits to the database and answers the new value, which readers then get."""
        with self.writing(key, strict=strict, publish_tags=tags) as write:
            value = save()
            write.publish(key, value)
        return value

    def write_around(self, key: str, save: Callable[[], T], *, strict: bool = False) -> T:
        """``save()`` commits to the database; the key is left empty for the next reader to load."""
        with self.writing(key, strict=strict):
            return save()

    def cached(
        self,
        *,
        key: Key = None,
        tags: Tags = (),
        skip: tuple[str, ...] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Callable[[Callable[P, T]], CachedFunction[P, T]]:
        """A decorator. ``key`` is a template over the arguments (`"user:{user_id}"`), a function of them, or None for all of them;
        ``skip`` names arguments that do not matter; ``tags`` are templates too. The return annotation decides what JSON decodes to.
        """

        def decorate(function: Callable[P, T]) -> CachedFunction[P, T]:
            return CachedFunction(self, function, key, tags, skip, policy, codec)

        return decorate


@contextmanager
def _writing(write: Write) -> typing.Iterator[Write]:
    run(write.begin())
    try:
        yield write
    except BaseException as error:
        run(write.end(error))
        raise
    run(write.end(None))


class AsyncCache(_Face):
    __doc__ = f"""Cache-aside for asyncio. Use one per event loop; it may be made before the loop runs.\n{_Face.__doc__}"""

    _make_port = Loop

    async def get(
        self,
        key: str,
        load: Callable[[], Awaitable[T] | T],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T:
        """The value of ``key``, by ``load()`` if need be. A cancelled caller does not cancel a load that others wait for."""
        if self.saved is not None:
            return cast(T, await self.saved.measure(self._port, key, load, policy or self.policy))
        known, arrived = UNASKED, 0
        if self._quick is not None and policy is None and not tags and self._aside.breaker.closed:
            full, arrived = self._full(key), next(self._aside.ticks)
            try:
                known = await self._quick(full)
            except self._aside.trouble as error:
                known = error
            value = self._aside.fresh(known, codec or self.codec, full)
            if value is not MISS:
                return cast(T, value)
        elif self.near is not None:
            near = self.near.peek(self._full(key))
            if near is not MISS:
                self._near_hit()
                return cast(T, near)
        return cast(T, await self._aside.get(self._request(key, load, tags, policy, codec, arrived), known))

    async def get_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[list[str]], Awaitable[Mapping[str, T]] | Mapping[str, T]],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> dict[str, T | None]:
        names = {self._full(key): key for key in keys}
        requests, load = _many(self, names, load_many, tags, policy, codec)
        if self.saved is not None:
            return cast("dict[str, T | None]", dict(await self._port.call(load_many, list(names.values()))))
        found = await get_many(self._aside, requests, load, names)
        return {names[full]: value for full, value in found.items()}

    async def invalidate(self, *keys: str, tags: Iterable[str] = ()) -> None:
        if self.saved is not None:
            self.saved.forget(keys)
            return
        await self._aside.invalidate([*map(self._full, keys), *self._names.tags(tags)])

    async def clear(self) -> None:
        _check_clearable(self)
        await self._aside.invalidate(self._always)

    def writing(
        self,
        *keys: str,
        tags: Sequence[str] = (),
        lease_seconds: float = 10.0,
        strict: bool = False,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
    ) -> AbstractAsyncContextManager[Write]:
        return _awriting(self._write(keys, tags, lease_seconds, strict, publish_tags, policy))

    async def write(self, key: str, save: Callable[[], Awaitable[T]], *, tags: Sequence[str] = (), strict: bool = False) -> T:
        async with self.writing(key, strict=strict, publish_tags=tags) as write:
            value = await save()
            write.publish(key, value)
        return value

    async def write_around(self, key: str, save: Callable[[], Awaitable[T]], *, strict: bool = False) -> T:
        async with self.writing(key, strict=strict):
            return await save()

    def cached(
        self,
        *,
        key: Key = None,
        tags: Tags = (),
        skip: tuple[str, ...] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], AsyncCachedFunction[P, T]]:
        def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> AsyncCachedFunction[P, T]:
            return AsyncCachedFunction(self, function, key, tags, skip, policy, codec)

        return decorate


@asynccontextmanager
async def _awriting(write: Write) -> typing.AsyncIterator[Write]:
    await write.begin()
    try:
        yield write
    except BaseException as error:
        await write.end(error)
        raise
    await write.end(None)


def _many(
    face: _Face,
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


def _check_clearable(face: _Face) -> None:
    if not face._always:
        raise CacheDown("this cache was not made with clearable=True; its entries do not hang on the namespace")
