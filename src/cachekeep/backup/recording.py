"""The recordings of an installation: a directory for each shard, in which a recorder keeps what it hears (``recorder.py``).

Everything that is needed to bring a moment back is in it, so it is read by whoever may read the directory, also while no control
plane runs.
"""

from __future__ import annotations

import bisect
import contextlib
import datetime as dt
import fcntl
import json
import os
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from valkey.exceptions import ResponseError, ValkeyError

from cachekeep.backup import recorder
from cachekeep.backup.feed import Feeding, Scratch, scratch
from cachekeep.backup.stream import commands, whole
from cachekeep.backup.timeline import Base, Segment, Timeline, Way
from cachekeep.errors import InvalidValue, OrderFailed

DIRECTORY: Final = "recordings"
"""In the data directory."""
_TARGET, _ABOUT, _LOCK, _LOG = "target.json", "about.json", "lock", "log"
_TAIL_BYTES: Final = 8 << 20
_PIECE_BYTES: Final = 1 << 20


class Upstream(msgspec.Struct, frozen=True):
    """Which node a recorder follows; of its own file's form."""

    address: str
    port: int
    user: str
    password: str
    rebase_seconds: float

    __repr__ = object.__repr__  # not with its password


class RecordedShard(msgspec.Struct, frozen=True):
    """Whose recording it is."""

    cache: str
    kind: str
    uid: str
    shard: str
    engine: str
    version: str


class Past:
    """A moment, live."""

    def __init__(self, engine: Scratch, feeding: Feeding, at_ns: int) -> None:
        self.engine = engine
        self._feeding, self._at_ns = feeding, at_ns

    async def read(self, command: Sequence[str], *, database: int, now: dt.datetime) -> object:
        """What the engine would have answered then, also of keys that have expired since. Raises ``OrderFailed`` if it refuses:
        nothing can be written to the past."""
        async with self.engine.client.client() as client:
            ask: Callable[..., Awaitable[Any]] = client.execute_command
            client.response_callbacks.clear()  # as the engine says it
            try:
                await ask("SELECT", database)
                with contextlib.suppress(ResponseError):  # it names no keys
                    keys: list[bytes] = await ask("COMMAND GETKEYS", *command)
                    await self._feeding.postpone(keys, database, int(now.timestamp() * 1000) - self._at_ns // 1_000_000)
                return await ask(*command)
            except ValkeyError as error:
                raise OrderFailed(f"it was not read: {error}") from None


class ShardRecording:
    """Of one shard."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def about(self) -> RecordedShard:
        return msgspec.json.decode((self.directory / _ABOUT).read_bytes(), type=RecordedShard)

    # -- the recorder

    def point(self, about: RecordedShard, source: Upstream) -> None:
        """Have the recorder follow this node from now on. Raises ``OSError``."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tell(_ABOUT, msgspec.json.encode(about))
        self._tell(_TARGET, msgspec.json.encode(source))

    def start(self) -> None:
        """Start a recorder, which goes on without us. It ends at once if one is there. Raises ``OSError``."""
        with (self.directory / _LOG).open("ab") as log:
            subprocess.Popen(
                (sys.executable, "-I", "-S", recorder.__file__, str(self.directory)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"MALLOC_ARENA_MAX": "1"},
                start_new_session=True,
            )

    def stop(self) -> None:
        """Have the recorder end within a second. What is recorded stays."""
        (self.directory / _TARGET).unlink(missing_ok=True)

    def on(self) -> bool:
        """Whether a recorder is to run."""
        return (self.directory / _TARGET).exists()

    def running(self) -> bool:
        with (self.directory / _LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _tell(self, name: str, content: bytes) -> None:
        path = self.directory / name
        if path.exists() and path.read_bytes() == content:
            return
        beside = path.with_suffix(".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        beside.replace(path)

    # -- what it has heard

    def timeline(self) -> Timeline:
        """What is recorded by now. Raises ``OSError``."""
        bases, segments = [], []
        for path in sorted(self.directory.glob("[bs]*.json")):
            kind, number = path.name[0], path.stem[1:]
            try:
                told = json.loads(path.read_bytes())
                if kind == "b":
                    bases.append(Base(int(number), told["history"], told["offset"]))
                    continue
                pairs = array("q")
                content = path.with_suffix(".index").read_bytes()
                pairs.frombytes(content[: len(content) // recorder.PAIR.size * recorder.PAIR.size])
                end = told["offset"] + path.with_suffix(".stream").stat().st_size
            except FileNotFoundError:  # pruned meanwhile
                continue
            why = (told["history"], told["offset"], end, told["before"], told["why"])
            segments.append(Segment(int(number), *why, pairs[0::2], pairs[1::2]))
        return Timeline(tuple(bases), tuple(segments))

    def prune(self, since_ns: int) -> int:
        """Remove what no moment since then needs; how many files. Raises ``OSError``."""
        bases, segments = self.timeline().unneeded(since_ns)
        doomed = [*(self.directory / f"s{n:08}" for n in segments), *(self.directory / f"b{n:08}" for n in bases)]
        for path in doomed:
            for suffix in (".json", ".index", ".stream", ".rdb"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        return len(doomed)

    def way(self, at_ns: int) -> Way:
        """Raises ``InvalidValue`` for a moment that cannot be had, with the nearest that can."""
        timeline = self.timeline()
        way = timeline.way(at_ns)
        if way is not None:
            return way
        spans = timeline.spans()
        before = max((span.end for span in spans if span.end < at_ns), default=None)
        after = min((span.begin for span in spans if span.begin > at_ns), default=None)
        nearest = [
            *([f"the last one before it is {told(before)}"] if before is not None else []),
            *([f"the first one after it is {told(after)}"] if after is not None else []),
        ]
        raise InvalidValue(
            f"{told(at_ns)} was not recorded: {', '.join(nearest) or 'nothing is recorded yet'}. Nothing was changed."
        )

    @contextlib.asynccontextmanager
    async def materialised(
        self, at_ns: int, server: Sequence[str], *, parent: Path | None = None, settings: dict[str, str] | None = None
    ) -> AsyncIterator[Past]:
        """A scratch engine with what had been received by that moment: whole commands and whole transactions.

        Raises ``InvalidValue`` for a moment that cannot be had, ``OrderFailed``, ``OSError``.
        """
        way = self.way(at_ns)
        rdb = _file(self.directory / f"b{way.base.number:08}.rdb")
        async with (
            scratch(server, parent=parent, settings=settings) as past,
            past.fed(rdb, history=way.base.history, offset=way.base.offset) as feeding,
        ):
            sure, near = way.base.offset, max(way.base.offset, way.offset - _TAIL_BYTES)
            if near > sure:
                # The engine knows best where commands end: up to some place near the end it is asked, and from there on we count.
                for piece in self._bytes(way, sure, near):
                    await feeding.send(piece)
                sure = await feeding.sure(max(near - _TAIL_BYTES, way.base.offset))
            rest = b"".join(self._bytes(way, sure, way.offset))
            await feeding.send(rest[near - sure : whole(rest)] if whole(rest) > near - sure else b"")
            if sure + whole(rest) < near:
                raise OrderFailed("the moment is within a transaction of more than 8 MiB: choose another")
            await feeding.settle()
            yield Past(past, feeding, at_ns)

    async def dump(self, at_ns: int, server: Sequence[str], *, parent: Path | None = None) -> AsyncIterator[bytes]:
        """A moment as an RDB. Raises as ``materialised`` does."""
        async with self.materialised(at_ns, server, parent=parent) as past:
            async for chunk in past.engine.dump():
                yield chunk

    def writes(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int, list[bytes]]]:
        """What was written between two moments: (when it came, database, words). Of each run without a hole, from the first whole
        command on. Raises ``OSError``, ``Damaged``."""
        timeline = self.timeline()
        before: Segment | None = None
        left, database = b"", 0
        for segment in timeline.segments:
            data = (self.directory / f"s{segment.number:08}.stream").read_bytes()
            if before is None or not segment.follows(before):
                begins = [
                    b.offset for b in timeline.bases if b.history == segment.history and segment.offset <= b.offset <= segment.end
                ]
                data, left = data[min(begins) - segment.offset if begins else len(data) :], b""
            before, data, place = segment, left + data, 0
            start, parsed = segment.end - len(data), 0
            for parsed, words in commands(data):
                if words[0].upper() == b"SELECT":
                    database = int(words[1])
                place = bisect.bisect_left(segment.offsets, start + parsed, place)
                if place < len(segment.offsets) and begin_ns <= segment.times[place] <= end_ns:
                    yield segment.times[place], database, words
            left = data[parsed:]

    def _bytes(self, way: Way, begin: int, end: int) -> Iterator[bytes]:
        """Of the stream on the way, from one offset to another."""
        for segment in way.segments:
            until = min(end, segment.end)
            if begin >= until:
                continue
            with (self.directory / f"s{segment.number:08}.stream").open("rb") as file:
                file.seek(begin - segment.offset)
                while begin < until:
                    piece = file.read(min(_PIECE_BYTES, until - begin))
                    begin += len(piece)
                    yield piece


async def _file(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_PIECE_BYTES):
            yield chunk


def recordings(data_dir: Path) -> list[ShardRecording]:
    """All that there are, by the names of their directories."""
    return [ShardRecording(path.parent) for path in sorted((data_dir / DIRECTORY).glob(f"*/{_ABOUT}"))]


def told(at_ns: int) -> str:
    """As people read it."""
    return dt.datetime.fromtimestamp(at_ns / 1e9, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
