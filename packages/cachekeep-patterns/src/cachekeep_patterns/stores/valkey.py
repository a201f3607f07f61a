"""Entries in Valkey or Redis, through valkey-py, redis-py or GLIDE."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cachekeep_patterns.entry import HEADER_BYTES, Kind
from cachekeep_patterns.stores import barriers
from cachekeep_patterns.stores.commands import Command, Commands, Script, ms

# ARGV: expected prefix, new value, time to live in ms
_SWAP = Script("""
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
""")

# ARGV: expected header, new header of the same length
_RELABEL = Script("""
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('SETRANGE', KEYS[1], 0, ARGV[2])
return 1
""")

# A barrier keeps its place, tainted: byte 0 is the kind, byte 1 the flags.
_DROP = Script(f"""
for _, key in ipairs(KEYS) do
  if redis.call('STRLEN', key) >= {HEADER_BYTES} and redis.call('GETRANGE', key, 0, 0) == '\\{int(Kind.BARRIER)}' then
    redis.call('SETRANGE', key, 1, '\\2')
  else
    redis.call('DEL', key)
  end
end
return 1
""")


class ValkeyStore:
    def __init__(self, commands: Commands) -> None:
        self.commands = commands
        execute = getattr(commands, "execute", None)
        self.quick: Callable[[str], Any] | None = None if execute is None else partial(execute, "GET")
        self.quick_many: Callable[[Sequence[str]], Any] | None = None
        if execute is not None and not commands.cluster:
            self.quick_many = lambda keys: execute("MGET", *keys)
        self.down = commands.down
        self.refused = commands.refused
        self.lags = commands.lags

    async def read(self, key: str) -> bytes | None:
        value: bytes | None = await self.commands("GET", key)
        return value

    async def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if not self.commands.cluster:
            values: list[bytes | None] = await self.commands("MGET", *keys)
            return values
        # MGET cannot span slots, and a pipeline that spans nodes has no order: the entry first, then what it is judged by.
        first = await self.commands("GET", keys[0])
        return [first, *await self.commands.many([("GET", key) for key in keys[1:]])]

    async def swap(self, key: str, expected: bytes | None, new: bytes | None, ttl_seconds: float) -> bool:
        if expected is None:
            return new is None or bool(await self.commands("SET", key, new, "NX", "PX", ms(ttl_seconds)))
        return bool(await _SWAP(self.commands, [key], expected, new or b"", ms(ttl_seconds)))

    async def relabel(self, key: str, expected: bytes, header: bytes, ttl_seconds: float) -> bool:
        return bool(await _RELABEL(self.commands, [key], expected, header))

    async def swap_many(self, swaps: Sequence[tuple[str, bytes | None, bytes | None, float]]) -> list[bool]:
        if any(expected is not None for _, expected, _, _ in swaps) and not self.commands.cluster:
            replies = await self.commands.many(
                [
                    ("SET", key, new, "NX", "PX", ms(ttl))
                    if expected is None
                    else ("EVAL", _SWAP.text, 1, key, expected, new or b"", ms(ttl))
                    for key, expected, new, ttl in swaps
                ]
            )
            return [bool(reply) for reply in replies]
        if self.commands.cluster:
            return [await self.swap(*one) for one in swaps]
        replies = await self.commands.many([("SET", key, new, "NX", "PX", ms(ttl)) for key, _, new, ttl in swaps])
        return [bool(reply) for reply in replies]

    async def clock(self) -> tuple[float, float] | None:
        try:
            reply = await self.commands("TIME")
            if isinstance(reply, dict):  # GLIDE asks every node
                reply = next(iter(reply.values()))
            return int(reply[0]) + int(reply[1]) / 1e6, 0.0
        except (TypeError, ValueError, LookupError):
            return None
        except (*self.down, *self.refused):
            return None

    async def drop(self, keys: Sequence[str]) -> None:
        if self.commands.cluster:
            for key in keys:
                await _DROP(self.commands, [key])
        elif keys:
            await _DROP(self.commands, keys)

    async def raise_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        await barriers.raise_barriers(self.commands, keys, writer, lease_seconds, renew=False)

    async def renew_barriers(self, keys: Sequence[str], writer: bytes, now: float, lease_seconds: float) -> None:
        await barriers.raise_barriers(self.commands, keys, writer, lease_seconds, renew=True)

    async def lower_barriers(
        self, keys: Sequence[str], writer: bytes, now: float, publish: Mapping[str, tuple[bytes, float]]
    ) -> None:
        await barriers.lower_barriers(self.commands, keys, writer, publish)


# --------------------------------------------------------------------------- clients


def _errors_of(client: Any) -> tuple[tuple[type[BaseException], ...], tuple[type[BaseException], ...]]:
    """(down, refused) of the client's own library, found without importing one that is not used."""
    if type(client).__module__.startswith("redis"):
        from redis import exceptions as of_redis

        down: tuple[type[BaseException], ...] = (of_redis.ConnectionError, of_redis.TimeoutError, OSError)
        return down, (of_redis.RedisError,)
    from valkey import exceptions

    return (
        (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterDownError, OSError),
        (exceptions.ValkeyError,),
    )


def _check_raw(client: Any) -> None:
    pool = getattr(client, "connection_pool", None)
    kwargs = pool.connection_kwargs if pool is not None else getattr(client, "connection_kwargs", {})
    if kwargs.get("decode_responses"):
        raise TypeError("this client decodes replies to text (decode_responses=True); entries are bytes, give one that does not")


class _Commands:
    """A client and what is known of it."""

    def __init__(self, client: Any) -> None:
        _check_raw(client)
        self.client = client
        self.down, self.refused = _errors_of(client)
        self.cluster = "Cluster" in type(client).__name__
        self.lags = hasattr(client, "reader") or any(
            getattr(client, name, None) for name in ("read_from_replicas", "load_balancing_strategy")
        )
        self.execute = client.execute_command

    def _pipeline(self, commands: Sequence[Command]) -> Any:
        pipe = self.client.pipeline() if self.cluster else self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return pipe


class BlockingCommands(_Commands):
    async def __call__(self, *command: Any) -> Any:
        return self.execute(*command)

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = self._pipeline(commands).execute() if commands else []
        return replies


class LoopCommands(_Commands):
    async def __call__(self, *command: Any) -> Any:
        return await self.execute(*command)

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = await self._pipeline(commands).execute() if commands else []
        return replies


class GlideCommands:
    """Valkey GLIDE (the `valkey-glide` package): one multiplexed connection; everything is a custom command to it."""

    def __init__(self, client: Any) -> None:
        import glide  # type: ignore[import-not-found,unused-ignore]

        self.client = client
        self.down: tuple[type[BaseException], ...] = (glide.ConnectionError, glide.TimeoutError, glide.ClosingError, OSError)
        self.refused: tuple[type[BaseException], ...] = (glide.GlideError,)
        self.cluster = "Cluster" in type(client).__name__
        self.lags = getattr(getattr(client, "config", None), "read_from", glide.ReadFrom.PRIMARY) is not glide.ReadFrom.PRIMARY

    async def __call__(self, *command: Any) -> Any:
        return await self.client.custom_command([part if isinstance(part, (str, bytes)) else str(part) for part in command])

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        return list(await asyncio.gather(*(self(*command) for command in commands)))


def commands_for(client: Any, *, blocking: bool) -> Commands:
    """The adapter for ``client``. Raises TypeError if it is async under the blocking API, or the reverse, or unknown."""
    module = type(client).__module__
    if module.startswith("glide"):
        if blocking:
            raise TypeError("GLIDE's client is async; use it with the Async classes")
        return GlideCommands(client)
    if not hasattr(client, "execute_command"):
        raise TypeError(f"{type(client).__name__} is not a client this library knows (valkey, redis, glide, pymemcache, emcache)")
    is_async = inspect.iscoroutinefunction(client.execute_command)
    if is_async == blocking:
        wanted, given = ("blocking", "async") if blocking else ("async", "blocking")
        raise TypeError(f"a {wanted} client is needed here, this one is {given}")
    return BlockingCommands(client) if blocking else LoopCommands(client)
