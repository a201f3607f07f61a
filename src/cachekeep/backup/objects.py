"""The objects of a vault, wherever they are: a directory, S3, Google Cloud Storage, Azure, memory.

obstore is called from threads of the vault's own and never by its coroutines: those let go of Python's objects in threads that
nobody waits for, and a process that ends meanwhile is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import os
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from cachekeep.errors import InvalidValue, NotInVault, VaultAway

if TYPE_CHECKING:
    from obstore import Bytes, GetOptions
    from obstore.store import ObjectStore, RetryConfig

T = TypeVar("T")
SCHEMES: Final = ("file", "s3", "gs", "az", "memory")
_PIECE_BYTES, _PIECES = 1 << 20, 4
_PART_BYTES, _PARTS_AT_A_TIME = 16 << 20, 2
"""S3 takes 10,000 parts of an object, so one may have 160 GB."""
_THREADS: Final = 16
_READ_AGAIN: Final = 4
_RETRY: RetryConfig = {
    "max_retries": 8,
    "retry_timeout": dt.timedelta(minutes=2),
    "backoff": {"init_backoff": dt.timedelta(milliseconds=100), "max_backoff": dt.timedelta(seconds=10), "base": 2},
}


class Listed(NamedTuple):
    path: str
    bytes: int
    modified_at: dt.datetime


class Objects:
    """Raises ``VaultAway`` for whatever does not work, after trying again for a while where that may help."""

    def __init__(self, url: str) -> None:
        """``url``: one of ``SCHEMES``, or the path of a directory. Raises ``InvalidValue``, ``VaultAway``."""
        self.url = url
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vault")
        parts = urlsplit(url)
        self._directory = Path(parts.path if parts.scheme else url) if parts.scheme in ("", "file") else None
        if parts.scheme not in ("", *SCHEMES):
            raise InvalidValue(f"there are no vaults at '{parts.scheme}://': there are {', '.join(SCHEMES)}, or a directory's path")
        self._store: ObjectStore
        try:
            if self._directory is not None:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store = LocalStore(self._directory, automatic_cleanup=True)
            elif parts.scheme == "memory":
                self._store = MemoryStore()
            else:
                plain = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")
                self._store = from_url(url, client_options={"allow_http": plain}, retry_config=_RETRY)
        except (BaseError, OSError, ValueError) as error:
            raise self._away("opened", error) from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def put(self, path: str, content: bytes) -> None:
        """An object as a whole, on disk when this returns."""
        await self._do("written", lambda: self._put(path, content))

    async def delete(self, path: str) -> None:
        """Done as well if there is no such object."""
        try:
            await self._do("changed", lambda: obstore.delete(self._store, path))
        except NotInVault:
            return

    async def get(self, path: str) -> bytes:
        """Of an object that is small. Raises ``NotInVault``."""
        return await self._do("read", lambda: bytes(obstore.get(self._store, path).bytes()))

    async def list(self, prefix: str) -> list[Listed]:
        """All objects under a prefix of whole path segments, by path."""

        def all_of_them() -> list[Listed]:
            found = (meta for batch in obstore.list(self._store, prefix) for meta in batch)
            return sorted(Listed(meta["path"], meta["size"], meta["last_modified"]) for meta in found)

        return await self._do("listed", all_of_them)

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """An object of any size in pieces. A transfer that breaks is taken up where it broke. Raises ``NotInVault``."""
        at, failed = 0, 0
        pieces: Iterator[Bytes] | None = None

        def step(begun: Iterator[Bytes] | None, at: int) -> tuple[Iterator[Bytes], bytes]:
            if begun is None:
                options: GetOptions = {"range": {"offset": at}} if at else {}
                begun = cast("Iterator[Bytes]", obstore.get(self._store, path, options=options).stream(min_chunk_size=_PIECE_BYTES))
            return begun, bytes(next(begun, b""))

        while True:
            try:
                pieces, piece = await self._do("read", functools.partial(step, pieces, at))
            except VaultAway:
                failed += 1
                if failed > _READ_AGAIN:
                    raise
                pieces = None
                await asyncio.sleep(0.1 * 2**failed)
                continue
            if not piece:
                return
            at += len(piece)
            yield piece

    def upload(self, path: str, make: Callable[[Iterator[bytes]], Iterator[bytes]]) -> Upload:
        """Begin an object of unknown size. ``make``: what is stored of what is written; it runs in a thread."""
        return Upload(lambda pieces: self._put(path, make(pieces)), self._threads, lambda error: self._away("written", error))

    def _put(self, path: str, content: bytes | Iterator[bytes]) -> None:
        multipart = not isinstance(content, bytes)
        if self._directory is not None:
            (self._directory / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        obstore.put(self._store, path, content, use_multipart=multipart, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_A_TIME)
        if self._directory is not None:
            file = self._directory / path
            with contextlib.suppress(PermissionError):  # where files have no modes
                file.chmod(0o600)  # it may hold all that a cache held, and whoever may look into a bucket's directory sees it
            for place in (file, *(p for p in file.parents if p.is_relative_to(self._directory))):
                fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    async def _do(self, what: str, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except FileNotFoundError as error:
            raise NotInVault(f"vault {self.url} does not hold it: {_first_line(error)}") from error
        except (BaseError, OSError) as error:
            raise self._away(what, error) from error

    def _away(self, what: str, error: Exception) -> VaultAway:
        return VaultAway(
            f"vault {self.url} cannot be {what}: {_first_line(error)}. What it holds is as it was: see that it can be reached, "
            "that its credentials are right and that it has room, then try again."
        )


class _Abandoned(Exception):
    """Nobody wants what was being written."""


class Upload:
    """What is being written. It is there as a whole after ``finish``, or not at all."""

    def __init__(
        self,
        put: Callable[[Iterator[bytes]], None],
        threads: ThreadPoolExecutor,
        away: Callable[[Exception], VaultAway],
    ) -> None:
        self._loop, self._away = asyncio.get_running_loop(), away
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room, self._held, self._given_up = asyncio.Semaphore(_PIECES), bytearray(), False
        self._running = self._loop.run_in_executor(threads, put, self._taken())
        self._running.add_done_callback(lambda _: self._room.release())

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more: memory is bounded. Raises ``VaultAway``."""
        self._held += data
        if len(self._held) >= _PIECE_BYTES:
            await self._room.acquire()
            if self._running.done():
                self._room.release()
                await self.finish()
            self._pieces.put(bytes(self._held))
            self._held.clear()

    async def finish(self) -> None:
        """Wait until all of it is stored. Raises ``VaultAway``; nothing is stored then."""
        self._pieces.put(bytes(self._held))
        self._pieces.put(None)
        self._held.clear()
        try:
            await asyncio.shield(self._running)
        except (BaseError, OSError) as error:
            raise self._away(error) from error

    async def abandon(self) -> None:
        """Have nothing stored, unless it is already."""
        self._given_up = True
        self._pieces.put(None)
        await asyncio.wait({self._running})
        self._running.cancelled() or self._running.exception()

    def _taken(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            yield piece
            self._loop.call_soon_threadsafe(self._room.release)
        if self._given_up:
            raise _Abandoned


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
