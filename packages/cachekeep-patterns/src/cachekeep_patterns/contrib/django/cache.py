"""A cache backend for Django.

    CACHES = {"default": {
        "BACKEND": "cachekeep_patterns.contrib.django.cache.ValkeyCache",
        "LOCATION": "valkey://127.0.0.1:6379/0",
        "OPTIONS": {"cluster": False, "namespace": "django", "client": {"socket_timeout": 1}},
    }}

Further OPTIONS: `deadline_seconds` (5) for sending a command again while a failover is under way, `max_connections` (100),
`ignore_exceptions` (False): a server that cannot be asked then counts as an empty one that keeps nothing, which is logged;
`models` (False): also keep model instances. Bytes that do not decode are a miss.

Values are plain data (see `codec`), never pickled. `clear()` removes this backend's keys (those under `namespace`),
or with `version=` one version's, and leaves everything else on the server alone. The async methods do not occupy
a thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from valkey import exceptions

from ...primitives.lock import AsyncLock, Lock
from ...topology.factory import MAX_CONNECTIONS
from .clients import Clients
from .codec import DjangoCodec

Result = TypeVar("Result")
Command: TypeAlias = tuple[Any, ...]
Steps: TypeAlias = Generator[list[Command], list[Any], Result]

log = logging.getLogger("cachekeep_patterns.django")
_BATCH = 500
_MISSING: Any = object()
_TELL_EVERY_SECONDS = 60.0
_AWAY = (exceptions.ValkeyError, OSError)
_INCREMENT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
return redis.call('INCRBY', KEYS[1], ARGV[1])
"""


class ValkeyCache(BaseCache):
    """`LOCATION` is a valkey-py URL (of any node, in cluster mode)."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options: Mapping[str, Any] = params.get("OPTIONS", {})
        options = {name if name.islower() else name.lower(): value for name, value in options.items()}
        known = {"cluster", "namespace", "client", "deadline_seconds", "max_connections", "ignore_exceptions", "models"}
        if unknown := set(options) - known:
            raise ValueError(f"unknown OPTIONS: {', '.join(sorted(unknown))}")
        self._clients = Clients(
            location,
            cluster=options.get("cluster", False),
            options={**options.get("client", {}), "decode_responses": False},
            deadline_seconds=options.get("deadline_seconds", 5.0),
            max_connections=options.get("max_connections", MAX_CONNECTIONS),
        )
        self._ignores = bool(options.get("ignore_exceptions", False))
        self._codec = DjangoCodec(models=options.get("models", False))
        self._told_at = -math.inf
        self._namespace = options.get("namespace", "django")

    def make_key(self, key: Any, version: int | None = None) -> str:
        return f"{self._namespace}:{super().make_key(key, version)}"

    # Sync

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return self._run(self._get(key, default, version), default)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._run(self._set_many({key: value}, timeout, version), [])

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._run(self._add(key, value, timeout, version), False)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._run(self._touch(key, timeout, version), False)

    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._run(self._delete_many([key], version), 0) > 0

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self._run(self._has(key, version), False)

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._counted(key, self._run(self._incr(key, delta, version), None))

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return self._run(self._get_many(list(keys), version), {})

    def set_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        return self._run(self._set_many(data, timeout, version), list(data))

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._run(self._delete_many(list(keys), version), 0)

    def clear(self, version: int | None = None) -> None:
        self._clear(self._pattern(version))

    def ttl(self, key: Any, version: int | None = None) -> float | None:
        """Seconds that are left; None for a value without an end, 0 for none at all."""
        return self._run(self._ttl(key, version), 0.0)

    def delete_pattern(self, pattern: str, version: int | None = None) -> int:
        """Delete the keys of this cache and version that match (`user:*`; *, ? and [a-c] as the server reads them); how many."""
        return self._clear(self._escaped_start(version) + pattern)

    def lock(self, key: Any, version: int | None = None, *, lease_seconds: float = 10.0, wait_seconds: float | None = None) -> Lock:
        """`with cache.lock("report") as fence:`: see `primitives.Lock`."""
        return Lock(self._clients.sync(), self._lock_name(key, version), lease_seconds=lease_seconds, wait_seconds=wait_seconds)

    def _clear(self, pattern: str) -> int:
        removed = 0
        try:
            keys: list[bytes] = []
            found: Iterator[bytes] = self._clients.sync().scan_iter(match=pattern, count=1000)
            for key in found:
                keys.append(key)
                if len(keys) == _BATCH:
                    removed += self._step_through(_unlink(keys))
                    keys = []
            return removed + self._step_through(_unlink(keys))
        except _AWAY as error:
            self._ignore(error)
            return removed

    # Async

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return await self._arun(self._get(key, default, version), default)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        await self._arun(self._set_many({key: value}, timeout, version), None)

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await self._arun(self._add(key, value, timeout, version), False)

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await self._arun(self._touch(key, timeout, version), False)

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return await self._arun(self._delete_many([key], version), 0) > 0

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return await self._arun(self._has(key, version), False)

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._counted(key, await self._arun(self._incr(key, delta, version), None))

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._counted(key, await self._arun(self._incr(key, -delta, version), None))

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return await self._arun(self._get_many(list(keys), version), {})

    async def aset_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        return await self._arun(self._set_many(data, timeout, version), list(data))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await self._arun(self._delete_many(list(keys), version), 0)

    async def aclear(self, version: int | None = None) -> None:
        await self._aclear(self._pattern(version))

    async def attl(self, key: Any, version: int | None = None) -> float | None:
        return await self._arun(self._ttl(key, version), 0.0)

    async def adelete_pattern(self, pattern: str, version: int | None = None) -> int:
        return await self._aclear(self._escaped_start(version) + pattern)

    def alock(
        self, key: Any, version: int | None = None, *, lease_seconds: float = 10.0, wait_seconds: float | None = None
    ) -> AsyncLock:
        """`async with cache.alock("report") as fence:`"""
        name = self._lock_name(key, version)
        return AsyncLock(self._clients.for_loop(), name, lease_seconds=lease_seconds, wait_seconds=wait_seconds)

    async def _aclear(self, pattern: str) -> int:
        removed = 0
        try:
            keys: list[bytes] = []
            found: AsyncIterator[bytes] = self._clients.for_loop().scan_iter(match=pattern, count=1000)
            async for key in found:
                keys.append(key)
                if len(keys) == _BATCH:
                    removed += await self._astep_through(_unlink(keys))
                    keys = []
            return removed + await self._astep_through(_unlink(keys))
        except _AWAY as error:
            self._ignore(error)
            return removed

    # What both do, without I/O: each yields a batch of commands and is sent their replies.

    def _get(self, key: Any, default: Any, version: int | None) -> Steps[Any]:
        (stored,) = yield [("GET", self.make_and_validate_key(key, version))]
        return self._value(key, stored, default)

    def _get_many(self, keys: list[Any], version: int | None) -> Steps[dict[Any, Any]]:
        replies = yield [("GET", self.make_and_validate_key(key, version)) for key in keys]
        found = {key: self._value(key, stored, _MISSING) for key, stored in zip(keys, replies, strict=True)}
        return {key: value for key, value in found.items() if value is not _MISSING}

    def _value(self, key: Any, stored: bytes | None, default: Any) -> Any:
        if stored is None:
            return default
        try:
            return self._codec.read(stored)
        except ValueError as error:
            self._tell("what is stored at %r does not decode and counts as missing: %s", key, error)
            return default

    def _set_many(self, data: Mapping[Any, Any], timeout: Any, version: int | None) -> Steps[list[Any]]:
        lifetime = self._lifetime(timeout)
        keys = {self.make_and_validate_key(key, version): value for key, value in data.items()}
        if lifetime is None:
            yield [("UNLINK", key) for key in keys]
        else:
            yield [("SET", key, self._codec.store(value), *lifetime) for key, value in keys.items()]
        return []

    def _add(self, key: Any, value: Any, timeout: Any, version: int | None) -> Steps[bool]:
        made = self.make_and_validate_key(key, version)
        lifetime = self._lifetime(timeout)
        if lifetime is None:
            (there,) = yield [("EXISTS", made)]
            return not there
        (done,) = yield [("SET", made, self._codec.store(value), "NX", *lifetime)]
        return bool(done)

    def _touch(self, key: Any, timeout: Any, version: int | None) -> Steps[bool]:
        made = self.make_and_validate_key(key, version)
        lifetime = self._lifetime(timeout)
        if lifetime is None:
            (done,) = yield [("UNLINK", made)]
        elif lifetime:
            (done,) = yield [("PEXPIRE", made, lifetime[1])]
        else:
            done, _ = yield [("EXISTS", made), ("PERSIST", made)]
        return bool(done)

    def _delete_many(self, keys: list[Any], version: int | None) -> Steps[int]:
        replies = yield [("UNLINK", self.make_and_validate_key(key, version)) for key in keys]
        return sum(replies)

    def _has(self, key: Any, version: int | None) -> Steps[bool]:
        (there,) = yield [("EXISTS", self.make_and_validate_key(key, version))]
        return bool(there)

    def _incr(self, key: Any, delta: int, version: int | None) -> Steps[int | None]:
        made = self.make_and_validate_key(key, version)
        try:
            (value,) = yield [("EVAL", _INCREMENT, 1, made, delta)]
        except exceptions.ResponseError as error:
            raise TypeError(f"{key!r} does not hold an integer that can be incremented: {error}") from error
        if value is None:
            raise ValueError(f"Key '{key}' not found")
        return int(value)

    def _ttl(self, key: Any, version: int | None) -> Steps[float | None]:
        (left_ms,) = yield [("PTTL", self.make_and_validate_key(key, version))]
        return None if left_ms == -1 else max(0.0, left_ms / 1000)

    def _lock_name(self, key: Any, version: int | None) -> str:
        return f"lock:{self.make_and_validate_key(key, version)}"

    @staticmethod
    def _counted(key: Any, value: int | None) -> int:
        if value is None:  # the server is away, which counts as an empty one
            raise ValueError(f"Key '{key}' not found")
        return value

    def _ignore(self, error: BaseException) -> None:
        """Raises ``error`` unless this cache may do without its server."""
        if not self._ignores:
            raise error
        self._tell("the cache could not be asked and counts as empty: %s", error)

    def _tell(self, what: str, *args: Any) -> None:
        if time.monotonic() - self._told_at >= _TELL_EVERY_SECONDS:
            self._told_at = time.monotonic()
            log.warning(what, *args)

    def _lifetime(self, timeout: Any) -> tuple[Any, ...] | None:
        """What follows SET: nothing for ever, PX and milliseconds, or None for a value that is over already."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        if seconds is None:
            return ()
        milliseconds = int(seconds * 1000)
        return ("PX", milliseconds) if milliseconds > 0 else None

    def _pattern(self, version: int | None) -> str:
        if version is not None:
            return self._escaped_start(version) + "*"
        start = f"{self._namespace}:"
        if self.key_prefix:
            # Another backend may share the namespace under its own prefix; a key function of the user's own may
            # not begin with the prefix, and then the whole namespace goes.
            made = self.key_func("", self.key_prefix, 0)
            start += f"{self.key_prefix}:" if made.startswith(f"{self.key_prefix}:") else ""
        return _escaped(start) + "*"

    def _escaped_start(self, version: int | None) -> str:
        return _escaped(self.make_key("", version))

    def _run(self, steps: Steps[Result], otherwise: Result) -> Result:
        """``otherwise``: the answer where the server cannot be asked and that may be."""
        try:
            return self._step_through(steps)
        except _AWAY as error:
            self._ignore(error)
            return otherwise

    def _step_through(self, steps: Steps[Result]) -> Result:
        client = self._clients.sync()
        try:
            commands = next(steps)
            while True:
                try:
                    if len(commands) == 1:
                        replies = [client.execute_command(*commands[0])]
                    else:
                        replies = _pipeline(client, commands).execute() if commands else []
                except exceptions.ResponseError as error:
                    commands = steps.throw(error)
                else:
                    commands = steps.send(replies)
        except StopIteration as done:
            value: Result = done.value
            return value

    async def _arun(self, steps: Steps[Result], otherwise: Result) -> Result:
        try:
            return await self._astep_through(steps)
        except _AWAY as error:
            self._ignore(error)
            return otherwise

    async def _astep_through(self, steps: Steps[Result]) -> Result:
        client = self._clients.for_loop()
        try:
            commands = next(steps)
            while True:
                try:
                    if len(commands) == 1:
                        replies = [await client.execute_command(*commands[0])]
                    else:
                        replies = await _pipeline(client, commands).execute() if commands else []
                except exceptions.ResponseError as error:
                    commands = steps.throw(error)
                else:
                    commands = steps.send(replies)
        except StopIteration as done:
            value: Result = done.value
            return value


def _pipeline(client: Any, commands: list[Command]) -> Any:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline


def _unlink(keys: list[bytes]) -> Steps[int]:
    replies = yield [("UNLINK", key) for key in keys]
    return sum(replies)


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in r"*?[]\^" else letter for letter in text)
