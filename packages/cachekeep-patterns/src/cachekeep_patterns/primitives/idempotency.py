"""Idempotency keys: a request sent twice is carried out once, and both get the same answer.

What can be promised depends on what happens when the process dies half way:
* ``at_most_once=False`` (default): its claim lapses and a retry runs again. Right for work that is itself one transaction.
* ``at_most_once=True``: the claim stays for ``keep_seconds``; retries get DuplicateRequest and a person has to look.
A key counts within its ``scope``: the tenant, user or account that sent it, and the kind of request. Clients choose keys, and two
of them may choose the same.

Both hold as long as the server keeps its data: a cache that may evict or forget is the wrong place for payments.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from cachekeep_patterns.codecs import Codec, codec_for
from cachekeep_patterns.errors import AnswerNotKept, CacheDown, DuplicateRequest, KeyReused, Uncodable
from cachekeep_patterns.keys import Namespace, canonical
from cachekeep_patterns.ports import Loop, Port, Threads, run
from cachekeep_patterns.stores import store_for

T = TypeVar("T")
_RUNNING, _DONE, _DONE_WITHOUT_ANSWER = b"R", b"D", b"U"
_HEAD = 1 + 16 + 16  # state, holder, fingerprint


class _Idempotency:
    def __init__(
        self,
        client: Any,
        port: Port,
        namespace: str,
        keep_seconds: float,
        lease_seconds: float,
        at_most_once: bool,
        codec: Codec | str,
    ) -> None:
        self._store, self._port = store_for(client, blocking=port.blocking), port
        self.namespace, self.keep_seconds, self.at_most_once = namespace, keep_seconds, at_most_once
        self._names = Namespace(namespace)
        self.lease_seconds = keep_seconds if at_most_once else lease_seconds
        self._codec = codec_for(codec)

    async def _run(self, key: str, work: Callable[[], Any], scope: str, arguments: Any, wait_seconds: float) -> Any:
        if not isinstance(scope, str) or not scope:
            raise ValueError("scope= says whose key this is: a text such as 'tenant-7:payments'")
        full = self._names.key(f"{scope.replace('%', '%25').replace(':', '%3A')}:{key}")
        fingerprint = hashlib.blake2b(canonical(arguments).encode(), digest_size=16).digest()
        running = _RUNNING + secrets.token_bytes(16) + fingerprint
        give_up = time.monotonic() + wait_seconds
        try:
            while not await self._store.swap(full, None, running, self.lease_seconds):
                found = await self._store.read(full)
                if found is None:
                    continue
                if found[17:_HEAD] != fingerprint:
                    raise KeyReused(f"{key} was used before with other arguments")
                if found[:1] != _RUNNING:
                    return self._answer(key, full, found)
                if time.monotonic() >= give_up:
                    raise DuplicateRequest(f"{key} is being carried out by another request")
                await self._port.sleep(0.01 + 0.02 * random.random())
        except (*self._store.down, *self._store.refused) as error:
            raise CacheDown(f"{key}: not carried out, it could not be told whether it was before: {error}") from error
        stop = self._port.every(self.lease_seconds / 3, lambda: self._store.swap(full, running, running, self.lease_seconds))
        try:
            answer = await self._port.call(work)
        except Exception:
            stop()
            await self._put(full, running, None, 0)  # it failed in an orderly way: a retry may try again
            raise
        except BaseException:
            stop()  # killed or cancelled half way: as if the process had died
            raise
        stop()
        try:
            encoded = self._codec.encode(answer, full)
            returned = self._codec.decode(encoded, full)  # what the others will get
        except Uncodable:
            # It is done all the same, and must not be done again.
            await self._put(full, running, _DONE_WITHOUT_ANSWER + running[1:], self.keep_seconds)
            return answer
        await self._put(full, running, _DONE + running[1:] + encoded, self.keep_seconds)
        return returned

    def _answer(self, key: str, full: str, found: bytes) -> Any:
        try:
            if found[:1] == _DONE:
                return self._codec.decode(found[_HEAD:], full)
            why: Uncodable | str = "its answer could not be encoded"
        except Uncodable as error:
            why = error
        raise AnswerNotKept(f"{key} was carried out and is not carried out again, but its answer is not to be had: {why}")

    async def _put(self, key: str, running: bytes, new: bytes | None, ttl_seconds: float) -> None:
        """The work is over either way: an error now must not say that it was not done."""
        with contextlib.suppress(*self._store.down, *self._store.refused):
            await self._store.swap(key, running, new, ttl_seconds)


class Idempotency(_Idempotency):
    """``keep_seconds`` an answer is remembered; ``lease_seconds`` a dead request blocks its retry; ``codec`` for the answers."""

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "idempotency",
        keep_seconds: float = 86_400.0,
        lease_seconds: float = 10.0,
        at_most_once: bool = False,
        codec: Codec | str = "json",
    ) -> None:
        super().__init__(client, Threads(), namespace, keep_seconds, lease_seconds, at_most_once, codec)

    def run(self, key: str, work: Callable[[], T], *, scope: str, arguments: Any = None, wait_seconds: float = 0.0) -> T:
        """The answer of ``work()``, now or from the first time, as the codec gives it back. ``scope``: whose key this is.

        Raises DuplicateRequest if it is still running after ``wait_seconds``, KeyReused if ``arguments`` differ from the first
        time's, AnswerNotKept if the first time's answer could not be encoded, CacheDown if the server cannot be asked (then
        ``work`` was not called), and what ``work`` raises (then a retry may run it again).
        """
        return cast(T, run(self._run(key, work, scope, arguments, wait_seconds)))


class AsyncIdempotency(_Idempotency):
    """The same for asyncio."""

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "idempotency",
        keep_seconds: float = 86_400.0,
        lease_seconds: float = 10.0,
        at_most_once: bool = False,
        codec: Codec | str = "json",
    ) -> None:
        super().__init__(client, Loop(), namespace, keep_seconds, lease_seconds, at_most_once, codec)

    async def run(
        self, key: str, work: Callable[[], Awaitable[T]], *, scope: str, arguments: Any = None, wait_seconds: float = 0.0
    ) -> T:
        return cast(T, await self._run(key, work, scope, arguments, wait_seconds))
