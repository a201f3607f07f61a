"""The two faces of cache-aside: `Cache` blocks, `AsyncCache` awaits. Same words, same semantics (aside.py)."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ParamSpec, TypeVar, cast

from cachekeep_patterns import plain
from cachekeep_patterns.aside import UNASKED, Request
from cachekeep_patterns.codecs import Codec
from cachekeep_patterns.face import Face, check_clearable, many
from cachekeep_patterns.functions import AsyncCachedFunction, CachedFunction, Key, Tags
from cachekeep_patterns.many import get_many
from cachekeep_patterns.near import MISS
from cachekeep_patterns.policy import Policy
from cachekeep_patterns.ports import Loop, Threads, run
from cachekeep_patterns.write import Write

T = TypeVar("T")
P = ParamSpec("P")


class Cache(Face):
    __doc__ = f"""Cache-aside for threads. Any number of threads may share one.\n{Face.__doc__}"""

    _make_port = Threads

    @typing.overload
    def get(
        self,
        key: str,
        load: Callable[[], T],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T: ...
    @typing.overload
    def get(
        self,
        key: str,
        load: None = None,
        *,
        default: Any = None,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Any: ...
    def get(
        self,
        key: str,
        load: Callable[[], Any] | None = None,
        *,
        default: Any = None,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Any:
        """The value of ``key``, by ``load()`` if need be; without a loader ``default`` if there is none. Raises what the loader
        raises, LoadTimeout, Overloaded, RecursiveLoad.
        """
        if load is None:
            asked = self._sized(key, tags, policy, codec)
            value = MISS if self.saved is not None else run(plain.peek(self._aside, asked))
            return default if value is MISS else value
        return self.fetch(self.full(key), self.tag_keys(tags), load, policy or self.policy, self.checked(codec))

    def fetch(self, full: str, tags: tuple[str, ...], load: Callable[[], Any], policy: Policy, codec: Codec) -> Any:
        """`get` by names as they stand on the server, which decorated functions know."""
        if self.saved is not None:
            return run(self.saved.measure(self._port, full, load, policy))
        aside, known, arrived = self._aside, UNASKED, 0
        if self.near is not None:
            value = self.near.peek(full)
            if value is not MISS:
                self.near_hit()
                return value
        elif quick := self._shortcut(tags, policy):
            arrived = next(aside.ticks)
            try:
                known = quick([full, *tags] if tags else full)
            except aside.trouble as error:
                known = error
            value = aside.fresh(known, codec, full)
            if value is not MISS:
                return value
        return run(aside.get(Request(full, load, policy, codec, tags, arrived), known))

    def refresh(
        self,
        key: str,
        load: Callable[[], T],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T:
        """Load now, whatever is stored; who asks from now on gets this or what is newer. Raises CacheDown too."""
        self.invalidate(key)
        return self.get(key, load, tags=tags, policy=policy, codec=codec)

    def set(
        self,
        key: str,
        value: Any,
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> None:
        """Store a value. Raises CacheDown, and Uncodable where it would not come back as it is. Beside a database, use `write`."""
        run(plain.put(self._aside, self._sized(key, tags, policy, codec), value))

    def delete(self, *keys: str) -> None:
        self.invalidate(*keys)

    def exists(self, key: str, *, tags: Sequence[str] = ()) -> bool:
        return run(plain.peek(self._aside, self._sized(key, tags, None, None))) is not MISS

    def incr(self, key: str, by: int = 1, *, initial: int = 0, policy: Policy | None = None) -> int:
        """Add to a whole number, which begins as ``initial``; its lifetime goes on. If it raises CacheDown it may have counted."""
        return run(plain.add(self._aside, self._sized(key, (), policy, None), by, initial))

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
        requests, load = many(self, names, load_many, tags, policy, codec)
        if self.saved is not None:
            return cast("dict[str, T | None]", dict(load_many(list(names.values()))))
        found = run(get_many(self._aside, requests, load, names))
        return {names[full]: value for full, value in found.items()}

    def invalidate(self, *keys: str, tags: Iterable[str] = ()) -> None:
        """From now on nobody gets what was loaded before now; loads under way will not be stored. Raises CacheDown."""
        if self.saved is not None:
            self.saved.forget(map(self.full, keys))
            return
        run(self._aside.invalidate([*map(self._full, keys), *self._names.tags(tags)]))

    def clear(self) -> None:
        """Invalidate the whole namespace in one step (``clearable=True``)."""
        check_clearable(self)
        run(self._aside.invalidate(self._always))

    def writing(
        self,
        *keys: str,
        tags: Sequence[str] = (),
        lease_seconds: float = 10.0,
        strict: bool = False,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> AbstractContextManager[Write]:
        """A `with` block around a database transaction: barriers up, block, barriers down. See write.py for every failure.

        ``tags`` are invalidated by the write; ``publish_tags`` are those the published entries hang on.
        """
        return _writing(self._write(keys, tags, lease_seconds, strict, publish_tags, policy, codec))

    def write(
        self,
        key: str,
        save: Callable[[], T],
        *,
        tags: Sequence[str] = (),
        strict: bool = False,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T:
        """Write-through: ``save()`` commits to the database and answers the new value, which readers then get. Tags as there.

        Readers through a decorated function look for its tags and codec: for those, say it to the function (`user.write`).
        """
        with self.writing(key, tags=tags, strict=strict, publish_tags=publish_tags, policy=policy, codec=codec) as write:
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
        condition: Callable[..., bool] | None = None,
        version: int | str | None = None,
    ) -> Callable[[Callable[P, T]], CachedFunction[P, T]]:
        """A decorator. ``key`` is a template over the arguments (`"user:{user_id}"`), a function of them, or None for all of them;
        ``skip`` names arguments that do not matter; ``tags`` are templates too. The return annotation decides what JSON decodes to.

        ``condition``, a function of the arguments: calls for which it answers False go past the cache. ``version``: raise it when
        what the function answers means something else than before; what is stored under another one is loaded anew.
        """

        def decorate(function: Callable[P, T]) -> CachedFunction[P, T]:
            if inspect.iscoroutinefunction(function):
                raise TypeError(f"{function.__qualname__} is async: decorate it with an AsyncCache")
            return CachedFunction(self, function, key, tags, skip, policy, codec, condition, version)

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


class AsyncCache(Face):
    __doc__ = f"""Cache-aside for asyncio. Use one per event loop; it may be made before the loop runs.\n{Face.__doc__}"""

    _make_port = Loop

    @typing.overload
    async def get(
        self,
        key: str,
        load: Callable[[], Awaitable[T] | T],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T: ...
    @typing.overload
    async def get(
        self,
        key: str,
        load: None = None,
        *,
        default: Any = None,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Any: ...
    async def get(
        self,
        key: str,
        load: Callable[[], Any] | None = None,
        *,
        default: Any = None,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> Any:
        """The value of ``key``, by ``load()`` if need be; without a loader ``default`` if there is none. A cancelled caller
        does not cancel a load that others wait for.
        """
        if load is None:
            asked = self._sized(key, tags, policy, codec)
            value = MISS if self.saved is not None else await plain.peek(self._aside, asked)
            return default if value is MISS else value
        return await self.fetch(self.full(key), self.tag_keys(tags), load, policy or self.policy, self.checked(codec))

    async def fetch(self, full: str, tags: tuple[str, ...], load: Callable[[], Any], policy: Policy, codec: Codec) -> Any:
        if self.saved is not None:
            return await self.saved.measure(self._port, full, load, policy)
        aside, known, arrived = self._aside, UNASKED, 0
        if self.near is not None:
            value = self.near.peek(full)
            if value is not MISS:
                self.near_hit()
                return value
        elif quick := self._shortcut(tags, policy):
            arrived = next(aside.ticks)
            try:
                known = await quick([full, *tags] if tags else full)
            except aside.trouble as error:
                known = error
            value = aside.fresh(known, codec, full)
            if value is not MISS:
                return value
        return await aside.get(Request(full, load, policy, codec, tags, arrived), known)

    async def refresh(
        self,
        key: str,
        load: Callable[[], Awaitable[T] | T],
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T:
        await self.invalidate(key)
        return await self.get(key, load, tags=tags, policy=policy, codec=codec)

    async def set(
        self,
        key: str,
        value: Any,
        *,
        tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> None:
        await plain.put(self._aside, self._sized(key, tags, policy, codec), value)

    async def delete(self, *keys: str) -> None:
        await self.invalidate(*keys)

    async def exists(self, key: str, *, tags: Sequence[str] = ()) -> bool:
        return await plain.peek(self._aside, self._sized(key, tags, None, None)) is not MISS

    async def incr(self, key: str, by: int = 1, *, initial: int = 0, policy: Policy | None = None) -> int:
        return await plain.add(self._aside, self._sized(key, (), policy, None), by, initial)

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
        requests, load = many(self, names, load_many, tags, policy, codec)
        if self.saved is not None:
            return cast("dict[str, T | None]", dict(await self._port.call(load_many, list(names.values()))))
        found = await get_many(self._aside, requests, load, names)
        return {names[full]: value for full, value in found.items()}

    async def invalidate(self, *keys: str, tags: Iterable[str] = ()) -> None:
        if self.saved is not None:
            self.saved.forget(map(self.full, keys))
            return
        await self._aside.invalidate([*map(self._full, keys), *self._names.tags(tags)])

    async def clear(self) -> None:
        check_clearable(self)
        await self._aside.invalidate(self._always)

    def writing(
        self,
        *keys: str,
        tags: Sequence[str] = (),
        lease_seconds: float = 10.0,
        strict: bool = False,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> AbstractAsyncContextManager[Write]:
        return _awriting(self._write(keys, tags, lease_seconds, strict, publish_tags, policy, codec))

    async def write(
        self,
        key: str,
        save: Callable[[], Awaitable[T]],
        *,
        tags: Sequence[str] = (),
        strict: bool = False,
        publish_tags: Sequence[str] = (),
        policy: Policy | None = None,
        codec: Codec | None = None,
    ) -> T:
        async with self.writing(key, tags=tags, strict=strict, publish_tags=publish_tags, policy=policy, codec=codec) as write:
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
        condition: Callable[..., bool] | None = None,
        version: int | str | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], AsyncCachedFunction[P, T]]:
        def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> AsyncCachedFunction[P, T]:
            if not inspect.iscoroutinefunction(function):
                raise TypeError(f"{function!r} is not async: decorate it with a Cache, or make it `async def`")
            return AsyncCachedFunction(self, function, key, tags, skip, policy, codec, condition, version)

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
