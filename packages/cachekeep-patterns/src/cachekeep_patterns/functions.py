"""Decorated functions: a call's arguments become its key (keys.py), its annotation says what the stored bytes decode to."""

from __future__ import annotations

import functools
import typing
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from cachekeep_patterns.codecs import Codec, Versioned, typed
from cachekeep_patterns.keys import KeyBuilder
from cachekeep_patterns.near import MISS
from cachekeep_patterns.policy import Policy

T = TypeVar("T")
P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")

Key = str | Callable[..., str] | None
Tags = Sequence[str] | Callable[..., Sequence[str]]
_ATOMS = frozenset((str, int, bool, type(None), bytes, uuid.UUID))
_REMEMBERED = 4096


class Asked(Protocol):
    """A `Cache` or an `AsyncCache`."""

    codec: Codec
    policy: Policy
    functions: dict[str, Any]
    near: Any
    saved: Any

    def full(self, key: str) -> str: ...
    def tag_keys(self, tags: Iterable[str]) -> tuple[str, ...]: ...
    def fetch(self, full: str, tags: tuple[str, ...], load: Callable[[], Any], policy: Policy, codec: Codec) -> Any: ...
    def near_hit(self) -> int: ...
    def checked(self, codec: Codec | None) -> Codec: ...
    def invalidate(self, *keys: str) -> Any: ...
    def write(self, key: str, save: Any, *, publish_tags: Sequence[str], policy: Policy | None, codec: Codec) -> Any: ...


class _Decorated(Generic[P, T]):
    """The parts of a decorated function that do not wait."""

    def __init__(
        self,
        face: Any,
        function: Callable[P, Any],
        key: Key,
        tags: Tags,
        skip: tuple[str, ...],
        policy: Policy | None,
        codec: Codec | None,
        condition: Callable[..., bool] | None,
        version: int | str | None,
    ) -> None:
        functools.update_wrapper(cast(Any, self), function)
        if isinstance(tags, str):
            raise TypeError(f"tags are a list of templates: tags=[{tags!r}]")
        self._face: Asked = face
        self._policy, self._condition, self._version = policy, condition, version
        self.uncached = function
        self._build = KeyBuilder(function, key, skip)
        self._tag_function = tags if callable(tags) else None
        self._tag_builders = () if callable(tags) else tuple(KeyBuilder(function, tag) for tag in tags)
        self._wanted_codec = face.checked(codec)
        self._known: dict[tuple[Any, ...], tuple[str, tuple[str, ...], Any]] = {}
        self._near = face.near if face.saved is None and condition is None else None
        self._near_hit = face.near_hit
        if key is None:
            self._register(function)

    def _register(self, function: Callable[P, Any]) -> None:
        """Refuse a second function of the same name: they would answer each other's calls."""
        before = self._face.functions.setdefault(self._build.prefix, function)
        if before is not function and _identity(before) != _identity(function):
            raise ValueError(f"another function that is called {self._build.prefix} is cached here: give key= to one of them")

    @functools.cached_property
    def _codec(self) -> Codec:
        """Found at the first call: by then the names that the annotation uses are there. Else it is left to the codec."""
        codec = self._wanted_codec
        try:
            returned = typing.get_type_hints(self.uncached).get("return", Any)
            if returned is not Any and not isinstance(returned, TypeVar):
                codec = typed(codec, returned)
        except (NameError, TypeError):  # what does not come back as it was is then not stored, and that is said
            pass
        return codec if self._version is None else Versioned(codec, self._version)

    def _name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """(key, tags) of a call, as they stand on the server."""
        if self._tag_function is not None:
            tags: Sequence[str] = self._tag_function(*args, **kwargs)
        else:
            tags = [build(args, kwargs) for build in self._tag_builders]
        return self._face.full(self._build(args, kwargs)), self._face.tag_keys(tags)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[str, ...], Any]:
        """The same with the types of the arguments, remembered where those cannot change."""
        kinds: Any = type(args[0]) if len(args) == 1 else tuple(map(type, args))
        if not kwargs and self._tag_function is None:
            try:
                found = self._known.get(args)
            except TypeError:
                found = None
            if found is not None and found[2] == kinds:  # 1 and True are one to a dict
                return found
        named = (*self._name(args, kwargs), kinds)
        if not kwargs and self._tag_function is None and _ATOMS.issuperset(map(type, args)):
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[args] = named
        return named

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call (without the namespace)."""
        return self._build(args, kwargs)

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> Sequence[str]:
        if self._tag_function is not None:
            return self._tag_function(*args, **kwargs)
        return [build(args, kwargs) for build in self._tag_builders]


def _identity(function: Any) -> tuple[Any, ...]:
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    return (code, *(id(cell.cell_contents) for cell in cells if _filled(cell)))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


class CachedFunction(_Decorated[P, T]):
    """Call it like the function. Also: `key`, `tags`, `write`, `invalidate`, `refresh`, `uncached`. A method: of each instance."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._near is not None and not kwargs:  # all of this is in `_ask` too; here it costs less
            try:
                found = self._known.get(args)
            except TypeError:
                found = None
            if found is not None and found[2] == (type(args[0]) if len(args) == 1 else tuple(map(type, args))):
                value = self._near.peek(found[0])
                if value is not MISS:
                    self._near_hit()
                    return value  # type: ignore[no-any-return]
        return self._ask(args, kwargs)

    def _ask(self, args: Any, kwargs: Any) -> T:
        if self._condition is not None and not self._condition(*args, **kwargs):
            return cast(T, self.uncached(*args, **kwargs))
        full, tags, _ = self._named(args, kwargs)
        policy = self._policy or self._face.policy
        return self._face.fetch(full, tags, lambda: self.uncached(*args, **kwargs), policy, self._codec)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: type) -> CachedFunction[P, T]: ...
    @overload
    def __get__(self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: type) -> BoundFunction[Q, T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else BoundFunction(self, instance)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget this call's result."""
        self._face.invalidate(self._build(args, kwargs))

    def write(self, save: Callable[[], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Write-through: ``save()`` commits to the database and answers what this call is to answer from then on."""
        key, tags = self._build(args, kwargs), self.tags(*args, **kwargs)
        return cast(T, self._face.write(key, save, publish_tags=tags, policy=self._policy, codec=self._codec))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it now, whatever is stored; who asks from now on gets this or what is newer."""
        self.invalidate(*args, **kwargs)
        return self(*args, **kwargs)


class AsyncCachedFunction(_Decorated[P, T]):
    """Await it like the function; else as `CachedFunction`."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._condition is not None and not self._condition(*args, **kwargs):
            return cast(T, await self.uncached(*args, **kwargs))
        full, tags, _ = self._named(args, kwargs)
        policy = self._policy or self._face.policy
        return cast(T, await self._face.fetch(full, tags, lambda: self.uncached(*args, **kwargs), policy, self._codec))

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncCachedFunction[P, T]: ...
    @overload
    def __get__(self: AsyncCachedFunction[Concatenate[S, Q], T], instance: S, owner: type) -> AsyncBoundFunction[Q, T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else AsyncBoundFunction(self, instance)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        await self._face.invalidate(self._build(args, kwargs))

    async def write(self, save: Callable[[], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        key, tags = self._build(args, kwargs), self.tags(*args, **kwargs)
        return cast(T, await self._face.write(key, save, publish_tags=tags, policy=self._policy, codec=self._codec))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        await self.invalidate(*args, **kwargs)
        return await self(*args, **kwargs)


class _Bound(Generic[P, T]):
    """A decorated method of one instance."""

    def __init__(self, function: Any, instance: Any) -> None:
        self._function, self._instance = function, instance

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        return cast(str, self._function.key(self._instance, *args, **kwargs))

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> Sequence[str]:
        return cast("Sequence[str]", self._function.tags(self._instance, *args, **kwargs))


class BoundFunction(_Bound[P, T]):
    def write(self, save: Callable[[], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, self._function.write(save, self._instance, *args, **kwargs))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, self._function(self._instance, *args, **kwargs))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        self._function.invalidate(self._instance, *args, **kwargs)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, self._function.refresh(self._instance, *args, **kwargs))

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, self._function.uncached(self._instance, *args, **kwargs))


class AsyncBoundFunction(_Bound[P, T]):
    async def write(self, save: Callable[[], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, await self._function.write(save, self._instance, *args, **kwargs))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return cast("Coroutine[Any, Any, T]", self._function(self._instance, *args, **kwargs))

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        await self._function.invalidate(self._instance, *args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, await self._function.refresh(self._instance, *args, **kwargs))

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return cast("Coroutine[Any, Any, T]", self._function.uncached(self._instance, *args, **kwargs))
