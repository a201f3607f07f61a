"""The two stores: the operations, carried out over a valkey-py client, sync or async.

A call that fails because the cache is failing over (connection lost, timed out, read-only, loading, cluster down …)
is repeated until the deadline, with growing, jittered pauses. That is safe because every call may be repeated.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from valkey import exceptions
from valkey.client import NEVER_DECODE

from ..ports import Loop, Port, Threads, run
from ..topology.bounds import idle_connections
from . import operations
from .errors import SessionUnavailable
from .operations import Call, Policy, Saved, SessionSeen, Steps
from .session import Session

Result = TypeVar("Result")

_LOST = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
    exceptions.MasterDownError,
    exceptions.ClusterError,
    exceptions.ValkeyClusterException,
    OSError,
)
_NEVER = (exceptions.AuthenticationError, exceptions.AuthorizationError)
# Redis before 7 wraps what a script met in an "ERR Error running script" reply.
_PASSING = ("READONLY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING")


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long a call is repeated while the cache cannot answer.

    The client's own `socket_timeout` bounds one try: give it one (a second, say), or a hung node hangs its callers.
    """

    deadline_seconds: float = 5
    first_pause_seconds: float = 0.01
    longest_pause_seconds: float = 0.5

    def pause_seconds(self, attempt: int) -> float:
        longest: float = min(self.longest_pause_seconds, self.first_pause_seconds * 2 ** min(attempt, 30))
        return longest * random.uniform(0.5, 1)


def _passes(error: BaseException) -> bool:
    if isinstance(error, _NEVER):
        return False
    return isinstance(error, _LOST) or (
        isinstance(error, exceptions.ResponseError) and any(word in str(error) for word in _PASSING)
    )


class _Undecoded:
    """A client's commands, with replies as bytes however the client is set."""

    refused: tuple[type[BaseException], ...] = (exceptions.NoScriptError,)

    def __init__(self, client: Any) -> None:
        self.client = client

    async def __call__(self, *command: Any) -> Any:
        reply = self.client.execute_command(*command, **{NEVER_DECODE: True})
        return await reply if inspect.isawaitable(reply) else reply


class _Store:
    """What both stores do, written once."""

    _port: Port

    def __init__(self, client: Any, policy: Policy | None = None, retry: Retry | None = None) -> None:
        self.client = client
        self.policy = policy or Policy()
        self.retry = retry or Retry()
        self._commands = _Undecoded(client)

    async def _carry_out(self, steps: Steps[Result]) -> Result:
        try:
            call = next(steps)
            while True:
                call = steps.send(await self._call(call))
        except StopIteration as done:
            value: Result = done.value
            return value

    async def _call(self, call: Call) -> Any:
        deadline = time.monotonic() + self.retry.deadline_seconds
        attempt = 0
        while True:
            try:
                return await self._once(call)
            except Exception as error:
                pause_seconds = self.retry.pause_seconds(attempt)
                if not _passes(error):
                    raise
                if time.monotonic() + pause_seconds > deadline:
                    raise SessionUnavailable(f"the cache did not answer in time: {error}") from error
                await self._reconnect()
            attempt += 1
            await self._port.sleep(pause_seconds)

    async def _once(self, call: Call) -> Any:
        return await call.script(self._commands, [call.key], *call.args)

    async def _reconnect(self) -> None:
        # An idle connection may lead to the node that is primary no more; the endpoint leads to the one that is.
        for connection in idle_connections(self.client):
            ending = connection.disconnect()
            if inspect.isawaitable(ending):
                await ending


class SessionStore(_Store):
    """Sessions over `valkey.Valkey` or `valkey.ValkeyCluster`. Safe to share between threads.

    `client`'s own decoding is left out of it: `decode_responses` may be on or off.
    Every method raises SessionUnavailable if the cache cannot be reached before `retry.deadline_seconds`.
    """

    _port = Threads()

    def load(self, session_id: str | None, into: Session | None = None, *, slide: bool = True) -> Session:
        """The session of this id, or a new empty one (`new` is true) if there is none. Slides its expiry."""
        session = Session() if into is None else into
        self._run(operations.load(self.policy, session, session_id, slide=slide))
        return session

    def save(self, session: Session, *, extend: bool = False) -> Saved:
        """Write what changed; no call at all if nothing did. See `operations.save` for what it raises."""
        return self._run(operations.save(self.policy, session, extend=extend))

    def update(self, session_id: str | None, change: Callable[[Session], Result], attempts: int = 20) -> Result:
        """Read-modify-write that loses nothing: see `operations.update`."""
        return self._run(operations.update(self.policy, session_id, change, attempts))

    def touch(self, session: Session) -> bool:
        """Slide the expiry; False if the session is over."""
        return self._run(operations.touch(self.policy, session))

    def delete(self, session_id: str | None) -> bool:
        """End the session of this id; False if there was none."""
        return self._run(operations.delete(self.policy, session_id))

    def logout_everywhere(self, user: str, *, keep: Session | None = None) -> int:
        """End every session of `user` (but `keep`) at once; returns how many records it removed."""
        return self._run(operations.logout_everywhere(self.policy, user, keep))

    def sessions_of(self, user: str) -> list[SessionSeen]:
        """The user's sessions, latest login first."""
        return self._run(operations.sessions_of(self.policy, user))

    def end(self, user: str, handle: str) -> bool:
        """End one of the user's sessions by its handle."""
        return self._run(operations.end(self.policy, user, handle))

    def _run(self, steps: Steps[Result]) -> Result:
        return run(self._carry_out(steps))

    def _send(self, call: Call) -> Any:
        """Once, whatever comes of it."""
        return run(self._once(call))


class AsyncSessionStore(_Store):
    """The same over `valkey.asyncio.Valkey` or `valkey.asyncio.ValkeyCluster`, for one event loop."""

    _port = Loop()

    async def load(self, session_id: str | None, into: Session | None = None, *, slide: bool = True) -> Session:
        """See SessionStore.load."""
        session = Session() if into is None else into
        await self._carry_out(operations.load(self.policy, session, session_id, slide=slide))
        return session

    async def save(self, session: Session, *, extend: bool = False) -> Saved:
        """See SessionStore.save."""
        return await self._carry_out(operations.save(self.policy, session, extend=extend))

    async def update(self, session_id: str | None, change: Callable[[Session], Result], attempts: int = 20) -> Result:
        """See SessionStore.update; `change` is a plain function."""
        return await self._carry_out(operations.update(self.policy, session_id, change, attempts))

    async def touch(self, session: Session) -> bool:
        """See SessionStore.touch."""
        return await self._carry_out(operations.touch(self.policy, session))

    async def delete(self, session_id: str | None) -> bool:
        """See SessionStore.delete."""
        return await self._carry_out(operations.delete(self.policy, session_id))

    async def logout_everywhere(self, user: str, *, keep: Session | None = None) -> int:
        """See SessionStore.logout_everywhere."""
        return await self._carry_out(operations.logout_everywhere(self.policy, user, keep))

    async def sessions_of(self, user: str) -> list[SessionSeen]:
        """See SessionStore.sessions_of."""
        return await self._carry_out(operations.sessions_of(self.policy, user))

    async def end(self, user: str, handle: str) -> bool:
        """See SessionStore.end."""
        return await self._carry_out(operations.end(self.policy, user, handle))
