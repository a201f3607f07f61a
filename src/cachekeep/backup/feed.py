"""Make the past live: a scratch engine that is fed what was kept, to be read, counted, or dumped again.

It is a process of ours alone, in a private directory, with a unix socket and no port, and it ends when its block does (or we do).
It is a replica, so it neither expires nor evicts anything by itself: what was kept is there, to the last key. Either it loads the
RDB by itself, or we are its primary: it gets the RDB, then any part of a stream, as the engine that wrote them would have sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import valkey.asyncio
from valkey.exceptions import BusyLoadingError, ConnectionError, ValkeyError

from cachekeep.backup.replica import CHUNK_BYTES
from cachekeep.errors import OrderFailed, printable

T = TypeVar("T")
START_SECONDS: Final = 20.0
_AGAIN_SECONDS: Final = 0.02
_SOCKET, _RDB, _LOG = "engine.sock", "dump.rdb", "engine.log"
_SAME: Final = 3
_POSTPONE: Final = b"""for _, key in ipairs(KEYS) do
    local at = redis.call('PEXPIRETIME', key)
    if at > 0 then redis.call('PEXPIREAT', key, at + ARGV[1]) end
end"""
_GET_ACK: Final = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n"
_SETTINGS: Final = {
    "port": "0",
    "unixsocket": _SOCKET,
    "unixsocketperm": "700",
    "dir": "./",
    "dbfilename": _RDB,
    "logfile": _LOG,
    "daemonize": "no",
    "save": '""',
    "appendonly": "no",
    "replicaof": "127.0.0.1 1",  # of nobody: it loads what has expired, too, and takes writes from nobody
    "replica-serve-stale-data": "yes",
    "repl-diskless-load": "on-empty-db",
    "repl-timeout": "86400",  # a slow vault is no dead primary
    "databases": "16",
}


class Scratch:
    """A scratch engine that answers."""

    def __init__(self, directory: Path, client: valkey.asyncio.Valkey, ended: Callable[[], str | None]) -> None:
        self.client = client
        self._directory, self._ended = directory, ended

    async def keys(self) -> dict[int, int]:
        """Database → how many keys are in it; databases without keys are left out."""
        info: dict[str, Any] = await self._try(self.client.info("keyspace"))
        return {int(name[2:]): int(seen["keys"]) for name, seen in info.items() if name.startswith("db")}

    async def dump(self) -> AsyncIterator[bytes]:
        """All of it, as an RDB. Raises ``OrderFailed``, for one if there is no room on the disk."""
        await self._try(self.client.save())
        with (self._directory / _RDB).open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
        (self._directory / _RDB).unlink()

    @contextlib.asynccontextmanager
    async def fed(self, rdb: AsyncIterator[bytes], *, history: str, offset: int) -> AsyncIterator[Feeding]:
        """Be its primary: in the block it holds the RDB, which is the first ``offset`` bytes of ``history``, and takes more.

        Raises ``OrderFailed``; what ``rdb`` raises passes through, and nothing of it is to be read then.
        """
        password = secrets.token_hex(32)
        came: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.get_running_loop().create_future()

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if came.done() or not await _greet(reader, writer, password) or came.done():
                writer.transport.abort()
            else:
                came.set_result((reader, writer))

        server = await asyncio.start_server(meet, "127.0.0.1", 0)
        try:
            await self._try(self.client.config_set("masterauth", password))
            await self._try(self.client.slaveof(*server.sockets[0].getsockname()[:2]))
            try:
                reader, writer = await asyncio.wait_for(came, START_SECONDS)
            except TimeoutError:
                raise OrderFailed(f"the scratch engine did not come for its data within {START_SECONDS:g} s") from None
        finally:
            server.close()
        feeding = Feeding(reader, writer, offset, self._ended)
        try:
            await feeding.begin(rdb, history)
            yield feeding
        finally:
            await feeding.end()

    async def _try(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (ValkeyError, OSError) as error:
            why = self._ended() or printable(str(error))
            raise OrderFailed(f"the scratch engine did not do as it was told: {why}") from error


class Feeding:
    """A scratch engine of which we are the primary."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, offset: int, ended: Callable[[], str | None]
    ) -> None:
        self.offset = offset
        """How much of the stream it has been sent, this far."""
        self._reader, self._writer, self._ended = reader, writer, ended
        self._acknowledged, self._more = -1, asyncio.Event()
        self._listening = asyncio.create_task(self._listen())

    async def begin(self, rdb: AsyncIterator[bytes], history: str) -> None:
        mark = secrets.token_hex(20).encode()
        await self._send(b"+FULLRESYNC %s %d\r\n$EOF:%s\r\n" % (history.encode(), self.offset, mark))
        async for chunk in rdb:
            await self._send(chunk)
        await self._send(mark)
        await self.applied(self.offset)

    async def send(self, data: bytes) -> None:
        """The next bytes of the stream; they need not end with a command. Raises ``OrderFailed``."""
        await self._send(data)
        self.offset += len(data)

    async def settle(self) -> None:
        """Wait until all that was sent is done; it must end with a whole command and transaction. Raises ``OrderFailed``."""
        until = self.offset
        await self.send(_GET_ACK)
        await self.applied(until)

    async def applied(self, offset: int) -> int:
        """Wait until so much of the stream is done, whole commands and transactions as the engine counts them; how much is it."""
        while self._acknowledged < offset:
            self._more.clear()
            if self._listening.done():
                raise self._lost()
            await self._more.wait()
        return self._acknowledged

    async def sure(self, offset: int) -> int:
        """As ``applied``, but it waits no longer when the engine says the same again and again: it is in the middle of something
        long."""
        same, before = 0, self._acknowledged
        while self._acknowledged < offset and same < _SAME:
            self._more.clear()
            if self._listening.done():
                raise self._lost()
            await self._more.wait()
            same = same + 1 if self._acknowledged == before else 0
            before = self._acknowledged
        return self._acknowledged

    async def postpone(self, keys: Sequence[bytes], database: int, milliseconds: int) -> None:
        """Have keys expire so much later: what is read of the past has not expired since. It must be settled.

        A replica hides what has expired from everybody but its primary, so it is told as one.
        """
        for words in (
            (b"SELECT", str(database).encode()),
            (b"EVAL", _POSTPONE, str(len(keys)).encode(), *keys, str(milliseconds).encode()),
        ):
            await self.send(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        await self.settle()

    async def end(self) -> None:
        self._listening.cancel()
        self._writer.transport.abort()
        await asyncio.gather(self._listening, return_exceptions=True)

    async def _send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise self._lost() from error

    async def _listen(self) -> None:
        try:
            while words := await _command(self._reader):
                if [word.upper() for word in words[:2]] == [b"REPLCONF", b"ACK"]:
                    self._acknowledged = int(words[2])
                    self._more.set()
        finally:
            self._more.set()

    def _lost(self) -> OrderFailed:
        return OrderFailed(f"the scratch engine did not take what it was fed: {self._ended() or 'it closed the connection'}")


@contextlib.asynccontextmanager
async def scratch(
    server: Sequence[str],
    *,
    parent: Path | None = None,
    rdb: AsyncIterator[bytes] | None = None,
    settings: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
    start_seconds: float = START_SECONDS,
) -> AsyncIterator[Scratch]:
    """A scratch engine run by the words of ``server`` (``Catalogue.command``), empty or with an RDB that it loads by itself.

    ``parent``: where its directory is made; None: where temporary files are. ``settings``: of its configuration file, such as more
    ``databases``. ``memory_bytes``: the most that it may have. ``start_seconds``: how long it may take, loading included.

    Raises ``OrderFailed`` if it does not start or cannot load; what ``rdb`` raises passes through.
    """
    directory = Path(tempfile.mkdtemp(prefix="cachekeep-scratch-", dir=parent))  # mode 0700
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    process: asyncio.subprocess.Process | None = None
    client: valkey.asyncio.Valkey | None = None
    try:
        if rdb is not None:
            await _write(directory / _RDB, rdb)
        lines = "".join(f"{name} {value}\n" for name, value in {**_SETTINGS, **(settings or {})}.items())
        (directory / "server.conf").write_text(lines)
        setpriv = shutil.which("setpriv")
        dying = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
        process = await asyncio.create_subprocess_exec(
            *dying,
            *server,
            "server.conf",
            cwd=directory,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        if memory_bytes is not None:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        # A path of a unix socket may have 108 bytes, and a data directory may be anywhere.
        client = valkey.asyncio.Valkey(unix_socket_path=f"/proc/self/fd/{place}/{_SOCKET}", socket_timeout=None)
        running = process

        def ended() -> str | None:
            return None if running.returncode is None else f"it has ended: {_last_words(directory / _LOG)}"

        await _serving(client, ended, start_seconds, directory / _LOG)
        yield Scratch(directory, client, ended)
    finally:
        if client is not None:
            await client.aclose()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        os.close(place)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> None:
    with path.open("xb") as file:
        async for chunk in chunks:
            await asyncio.to_thread(file.write, chunk)


async def _serving(client: valkey.asyncio.Valkey, ended: Callable[[], str | None], seconds: float, log: Path) -> None:
    try:
        async with asyncio.timeout(seconds):
            while (why := ended()) is None:
                with contextlib.suppress(BusyLoadingError, ConnectionError):
                    await client.ping()
                    return
                await asyncio.sleep(_AGAIN_SECONDS)
    except TimeoutError:
        raise OrderFailed(f"the scratch engine does not serve after {seconds:g} s: {_last_words(log)}") from None
    raise OrderFailed(f"the scratch engine could not load what it was given: {why}")


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if " # " in line] or lines
    return printable(told[-1]) if told else "it said nothing"


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, password: str) -> bool:
    """Answer what a replica says before it asks for data. Whether it knew the password and asks for everything."""
    known = False
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
        while words := await _command(reader):
            match words[0].upper(), *words[1:]:
                case b"AUTH", *_, told:
                    known = hmac.compare_digest(told, password.encode())
                    writer.write(b"+OK\r\n" if known else b"-WRONGPASS\r\n")
                case b"PING", *_:
                    writer.write(b"+PONG\r\n")
                case b"REPLCONF", *_:
                    writer.write(b"+OK\r\n")
                case b"PSYNC", *_:
                    return known
                case _:
                    return False
    return False


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """The next command; empty at the end. Raises ``ValueError`` for what is none."""
    while (line := await reader.readline()).isspace():  # a replica that loads for long says so by empty lines
        pass
    line = line.strip()
    if not line:
        return []
    if not line.startswith(b"*"):
        raise ValueError("no command")
    words = []
    for _ in range(int(line[1:])):
        length = int((await reader.readline()).strip()[1:])
        words.append((await reader.readexactly(length + 2))[:-2])
    return words
