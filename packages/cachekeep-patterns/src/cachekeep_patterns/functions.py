"""Decorated functions: a call's arguments become its key (keys.py), its annotation says what the stored bytes decode to."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from cachekeep_patterns.codecs import Codec, typed
from cachekeep_patterns.keys import KeyBuilder
from cachekeep_patterns.policy import Policy

T = TypeVar("T")
P = ParamSpec("P")

Key = str | Callable[..., str] | None
Tags = Sequence[str] | Callable[..., Sequence[str]]


class Face(Protocol):
    """A `Cache` or an `AsyncCache`."""

    codec: Codec

    def get(self, key: str, load: Callable[[], Any], *, tags: Any, policy: Policy | None, codec: Codec | None) -> Any: ...
    def invalidate(self, *keys: str) -> Any: ...


class _Decorated(Generic[P, T]):
    """The parts of a decorated function that do not wait."""

    def __init__(
        self,
        function: Callable[P, Any],
        key: Key,
        tags: Tags,
        skip: tuple[str, ...],
        face: Face,
        codec: Codec | None,
    ) -> None:
        functools.update_wrapper(cast(Any, self), function)
        self._function = function
        self._build = KeyBuilder(function, key, skip)
        self._tag_function = tags if callable(tags) else None
        if isinstance(tags, str):
            raise TypeError(f"tags are a list of templates: tags=[{tags!r}]")
        self._tag_builders = () if callable(tags) else tuple(KeyBuilder(function, tag) for tag in tags)
        if isinstance(codec, str):
            raise TypeError(f"codec= is an object here; by name, give it to the cache: Cache(…, codec={codec!r})")
        self._wanted_codec = codec or face.codec

    @functools.cached_property
    def _decoding(self) -> Codec:
        """Found at the first call: by then the names that the annotation uses are there. Else it is left to the codec."""
        try:
            return _annotated_codec(self._function, self._wanted_codec)
        except NameError:
            return self._wanted_codec

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call (without the namespace)."""
        return self._build(args, kwargs)

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> Sequence[str]:
        if self._tag_function is not None:
            return self._tag_function(*args, **kwargs)
        return [build(args, kwargs) for build in self._tag_builders]


def _annotated_codec(function: Callable[..., Any], codec: Codec) -> Codec:
    """``codec`` for the annotated result. NameError where the annotation names what is not there (yet)."""
    returned = typing.get_type_hints(function).get("return", Any)
    if returned is Any or isinstance(returned, TypeVar):
        return codec
    try:
        return typed(codec, returned)
    except TypeError:  # the codec cannot decode to it: what does not come back as it was is not stored, and that is said
        return codec


class CachedFunction(_Decorated[P, T]):
    """Call it like the function. Also: `key`, `invalidate`, `uncached`."""

    def __init__(
        self,
        cache: Face,
        function: Callable[P, T],
        key: Key,
        tags: Tags,
        skip: tuple[str, ...],
        policy: Policy | None,
        codec: Codec | None,
    ) -> None:
        super().__init__(function, key, tags, skip, cache, codec)
        self._cache, self._policy = cache, policy
        self.uncached = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        value: T = self._cache.get(
            self._build(args, kwargs),
            lambda: self.uncached(*args, **kwargs),
            tags=self.tags(*args, **kwargs),
            policy=self._policy,
            codec=self._decoding,
        )
        return value

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget this call's result."""
        self._cache.invalidate(self._build(args, kwargs))


class AsyncCachedFunction(_Decorated[P, T]):
    """Await it like the function. Also: `key`, `invalidate`, `uncached`."""

    def __init__(
        self,
        cache: Face,
        function: Callable[P, Coroutine[Any, Any, T]],
        key: Key,
        tags: Tags,
        skip: tuple[str, ...],
        policy: Policy | None,
        codec: Codec | None,
    ) -> None:
        super().__init__(function, key, tags, skip, cache, codec)
        self._cache, self._policy = cache, policy
        self.uncached = function

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        value: T = await self._cache.get(
            self._build(args, kwargs),
            lambda: self.uncached(*args, **kwargs),
            tags=self.tags(*args, **kwargs),
            policy=self._policy,
            codec=self._decoding,
        )
        return value

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        await self._cache.invalidate(self._build(args, kwargs))
