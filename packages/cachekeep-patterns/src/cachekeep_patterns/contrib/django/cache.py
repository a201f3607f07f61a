"""A cache backend for Django.

    CACHES = {"default": {
        "BACKEND": "cachekeep_patterns.contrib.django.cache.ValkeyCache",
        "LOCATION": "valkey://127.0.0.1:6379/0",
        "OPTIONS": {"cluster": False, "namespace": "django", "client": {"socket_timeout": 1}},
    }}

Values are plain data (see `codec`), never pickled. `clear()` removes this backend's keys (those under `namespace`),
or with `version=` one version's, and leaves everything else on the server alone. The async methods do not occupy
a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from valkey import exceptions

from . import codec
from .clients import Clients

Result = TypeVar("Result")
Command: TypeAlias = tuple[Any, ...]
Steps: TypeAlias = Generator[list[Command], list[Any], Result]

_BATCH = 500
_INCREMENT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
return redis.call('INCRBY', KEYS[1], ARGV[1])
"""


class ValkeyCache(BaseCache):
    """`LOCATION` is a valkey-py URL (of any node, in cluster mode)."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options: Mapping[str, Any] = params.get("OPTIONS", {})
        unknown = set(options) - {"cluster", "namespace", "client"}
        if unknown:
            raise ValueError(f"unknown OPTIONS: {', '.join(sorted(unknown))}")
        self._clients = Clients(
            location,
            cluster=options.get("cluster", False),
            options={**options.get("client", {}), "decode_responses": False},
        )
        self._namespace = options.get("namespace", "django")

    def make_key(self, key: Any, version: int | None = None) -> str:
        return f"{self._namespace}:{super().make_key(key, version)}"

    # Sync

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return self._run(self._get(key, default, version))

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._run(self._set_many({key: value}, timeout, version))

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._run(self._add(key, value, timeout, version))

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._run(self._touch(key, timeout, version))

    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._run(self._delete_many([key], version)) > 0

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self._run(self._has(key, version))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._run(self._incr(key, delta, version))

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return self._run(self._get_many(list(keys), version))

    def set_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        self._run(self._set_many(data, timeout, version))
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._run(self._delete_many(list(keys), version))

    def clear(self, version: int | None = None) -> None:
        keys: list[bytes] = []
        found: Iterator[bytes] = self._clients.sync().scan_iter(match=self._pattern(version), count=1000)
        for key in found:
            keys.append(key)
            if len(keys) == _BATCH:
                self._run(_unlink(keys))
                keys = []
        self._run(_unlink(keys))

    # Async

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return await self._arun(self._get(key, default, version))

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        await self._arun(self._set_many({key: value}, timeout, version))

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await self._arun(self._add(key, value, timeout, version))

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await self._arun(self._touch(key, timeout, version))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return await self._arun(self._delete_many([key], version)) > 0

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return await self._arun(self._has(key, version))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await self._arun(self._incr(key, delta, version))

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await self._arun(self._incr(key, -delta, version))

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return await self._arun(self._get_many(list(keys), version))

    async def aset_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        await self._arun(self._set_many(data, timeout, version))
        return []

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await self._arun(self._delete_many(list(keys), version))

    async def aclear(self, version: int | None = None) -> None:
        keys: list[bytes] = []
        found: AsyncIterator[bytes] = self._clients.for_loop().scan_iter(match=self._pattern(version), count=1000)
        async for key in found:
            keys.append(key)
            if len(keys) == _BATCH:
                await self._arun(_unlink(keys))
                keys = []
        await self._arun(_unlink(keys))

    # What both do, without I/O: each yields a batch of commands and is sent their replies.

    def _get(self, key: Any, default: Any, version: int | None) -> Steps[Any]:
        (stored,) = yield [("GET", self.make_and_validate_key(key, version))]
        return default if stored is None else codec.decode(stored)

    def _get_many(self, keys: list[Any], version: int | None) -> Steps[dict[Any, Any]]:
        replies = yield [("GET", self.make_and_validate_key(key, version)) for key in keys]
        return {key: codec.decode(stored) for key, stored in zip(keys, replies, strict=True) if stored is not None}

    def _set_many(self, data: Mapping[Any, Any], timeout: Any, version: int | None) -> Steps[None]:
        lifetime = self._lifetime(timeout)
        keys = {self.make_and_validate_key(key, version): value for key, value in data.items()}
        if lifetime is None:
            yield [("UNLINK", key) for key in keys]
        else:
            yield [("SET", key, codec.encode(value), *lifetime) for key, value in keys.items()]

    def _add(self, key: Any, value: Any, timeout: Any, version: int | None) -> Steps[bool]:
        made = self.make_and_validate_key(key, version)
        lifetime = self._lifetime(timeout)
        if lifetime is None:
            (there,) = yield [("EXISTS", made)]
            return not there
        (done,) = yield [("SET", made, codec.encode(value), "NX", *lifetime)]
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

    def _incr(self, key: Any, delta: int, version: int | None) -> Steps[int]:
        made = self.make_and_validate_key(key, version)
        try:
            (value,) = yield [("EVAL", _INCREMENT, 1, made, delta)]
        except exceptions.ResponseError as error:
            raise TypeError(f"{key!r} does not hold an integer that can be incremented: {error}") from error
        if value is None:
            raise ValueError(f"Key '{key}' not found")
        return int(value)

    def _lifetime(self, timeout: Any) -> tuple[Any, ...] | None:
        """What follows SET: nothing for ever, PX and milliseconds, or None for a value that is over already."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        if seconds is None:
            return ()
        milliseconds = int(seconds * 1000)
        return ("PX", milliseconds) if milliseconds > 0 else None

    def _pattern(self, version: int | None) -> str:
        start = f"{self._namespace}:"
        if version is not None:
            start += self.key_func("", self.key_prefix, version)
        elif self.key_prefix:
            # Another backend may share the namespace under its own prefix; a key function of the user's own may
            # not begin with the prefix, and then the whole namespace goes.
            made = self.key_func("", self.key_prefix, 0)
            start += f"{self.key_prefix}:" if made.startswith(f"{self.key_prefix}:") else ""
        return "".join(f"\\{letter}" if letter in r"*?[]\^" else letter for letter in start) + "*"

    def _run(self, steps: Steps[Result]) -> Result:
        client = self._clients.sync()
        try:
            commands = next(steps)
            while True:
                try:
                    if len(commands) == 1:
                        replies = [client.execute_command(*commands[0])]
                    else:
                        pipeline = client.pipeline(transaction=False)
                        for command in commands:
                            pipeline.execute_command(*command)
                        replies = pipeline.execute()
                except exceptions.ResponseError as error:
                    commands = steps.throw(error)
                else:
                    commands = steps.send(replies)
        except StopIteration as done:
            value: Result = done.value
            return value

    async def _arun(self, steps: Steps[Result]) -> Result:
        client = self._clients.for_loop()
        try:
            commands = next(steps)
            while True:
                try:
                    if len(commands) == 1:
                        replies = [await client.execute_command(*commands[0])]
                    else:
                        pipeline = client.pipeline(transaction=False)
                        for command in commands:
                            pipeline.execute_command(*command)
                        replies = await pipeline.execute()
                except exceptions.ResponseError as error:
                    commands = steps.throw(error)
                else:
                    commands = steps.send(replies)
        except StopIteration as done:
            value: Result = done.value
            return value


def _unlink(keys: list[bytes]) -> Steps[None]:
    yield [("UNLINK", key) for key in keys]
