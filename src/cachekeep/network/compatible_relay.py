"""Presents a primary without cluster mode as a cluster of one node. A program of its own: ``python -I -S compatible_relay.py
DIRECTORY``.

Clients of the cluster protocol ask a few things that an engine without cluster mode refuses (``CLUSTER SLOTS``, ``READONLY`` …). On
their way to the engine these commands are replaced with a read-only script that returns what a cluster would have answered;
everything else, and every answer, passes byte for byte. So answers need no reading and come in order by themselves, in pipelines,
transactions and beside pushes, and whoever may not ask is refused by the engine.

What is told: this endpoint is the only primary and owns all slots. Behind it is the primary endpoint, an address that moves with
the lead and whose clients are dropped when it moves: connections through here end with it, and there is nobody to be told about a
failover.

It outlives the control plane, hence the standard library alone. ``DIRECTORY/listen`` holds our address and port, the primary
endpoint's address and our node id.
"""

from __future__ import annotations

import asyncio
import binascii
import resource
import sys

SLOTS = 16384
CONNECTIONS = 10_000
COMMAND_BYTES = 65536  # Commands that are replaced are short; whatever is longer is none of them.
NAME_BYTES = 16
CONNECT_SECONDS = 2.0  # A failover takes less; waiting is kinder than an error.
AGAIN_SECONDS = 0.01

BUS_PORT_OFFSET = 10_000
STATUS_OK = "return {ok='OK'}"
ERROR = "return {err=ARGV[1]}"
STRING = "return ARGV[1]"
NUMBER = "return tonumber(ARGV[1])"
EMPTY = "return {}"
TEXT = "return {verbatim_string={string=ARGV[1],format='txt'}}"
TABLE = "return {{0,16383,{ARGV[1],tonumber(ARGV[2]),ARGV[3],{map={}}}}}"
OFFSET = "local offset=tonumber(string.match(redis.call('INFO','replication'),'master_repl_offset:(%d+)'))\n"
# As an array of names and values the order counts for some clients, so a map, which has none, is for RESP3 only.
SHARDS = (
    OFFSET + "return {{'slots',{0,16383},'nodes',{{'id',ARGV[3],'port',tonumber(ARGV[2]),'ip',ARGV[1],'endpoint',ARGV[1],"
    "'role','master','replication-offset',offset,'health','online'}}}}"
)
SHARDS_RESP3 = (
    OFFSET + "return {{map={slots={0,16383},nodes={{map={id=ARGV[3],port=tonumber(ARGV[2]),ip=ARGV[1],endpoint=ARGV[1],"
    "role='master',['replication-offset']=offset,health='online'}}}}}}"
)
OURS = {b"CLUSTER", b"READONLY", b"READWRITE", b"ASKING", b"SELECT", b"HELLO", b"RESET"}


def slot_of(key: bytes) -> int:
    """The key's slot: of what is between the first braces, if something is."""
    _, brace, rest = key.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if brace and closing and tag else key, 0) % SLOTS


def script(text: str, *values: object) -> bytes:
    """The command that has the engine answer. ``EVAL_RO`` is neither held up by a pause of writes nor refused by a full memory."""
    words = [b"EVAL_RO", text.encode(), b"0", *(v if isinstance(v, bytes) else str(v).encode() for v in values)]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Presented:
    """What a cluster of one node says of itself."""

    def __init__(self, address: str, port: int, node_id: str) -> None:
        self.address, self.port, self.node_id = address, port, node_id
        self.line = f"{node_id} {address}:{port}@{port + BUS_PORT_OFFSET} myself,master - 0 0 1 connected 0-{SLOTS - 1}\n"
        self.info = "".join(
            f"{name}:{value}\r\n"
            for name, value in {
                "cluster_state": "ok",
                "cluster_slots_assigned": SLOTS,
                "cluster_slots_ok": SLOTS,
                "cluster_slots_pfail": 0,
                "cluster_slots_fail": 0,
                "cluster_known_nodes": 1,
                "cluster_size": 1,
                "cluster_current_epoch": 1,
                "cluster_my_epoch": 1,
                "cluster_stats_messages_sent": 0,
                "cluster_stats_messages_received": 0,
                "total_cluster_links_buffer_limit_exceeded": 0,
            }.items()
        )

    def answer(self, words: list[bytes], resp3: bool) -> bytes | None:
        """What to send in place of the command; None: the command itself, and the engine decides what becomes of it."""
        name, asked = words[0].upper(), words[1:]
        if name in (b"READONLY", b"READWRITE", b"ASKING"):
            return None if asked else script(STATUS_OK)
        if name == b"SELECT":
            return script(ERROR, "ERR SELECT is not allowed in cluster mode") if asked and asked[0].strip(b"0") else None
        if name == b"CLUSTER" and asked:
            return self.cluster(asked[0].upper(), asked[1:], resp3)
        return None

    def cluster(self, what: bytes, asked: list[bytes], resp3: bool) -> bytes | None:
        if not asked:
            ourselves = (self.address, self.port, self.node_id)
            found: dict[bytes, tuple[str, tuple[object, ...]]] = {
                b"SLOTS": (TABLE, ourselves),
                b"SHARDS": (SHARDS_RESP3 if resp3 else SHARDS, ourselves),
                b"NODES": (TEXT, (self.line,)),
                b"INFO": (TEXT, (self.info,)),
                b"MYID": (STRING, (self.node_id,)),
                b"MYSHARDID": (STRING, (self.node_id,)),
            }
            return script(found[what][0], *found[what][1]) if what in found else None
        if what == b"KEYSLOT" and len(asked) == 1:
            return script(NUMBER, slot_of(asked[0]))
        if what in (b"REPLICAS", b"SLAVES", b"COUNT-FAILURE-REPORTS") and len(asked) == 1:
            if asked[0].lower() != self.node_id.encode():
                return script(ERROR, b"ERR Unknown node " + asked[0].translate(None, b"\r\n"))
            return script(NUMBER, 0) if what == b"COUNT-FAILURE-REPORTS" else script(EMPTY)
        if what in (b"COUNTKEYSINSLOT", b"GETKEYSINSLOT"):
            return script(ERROR, b"ERR CLUSTER " + what + b" needs cluster mode: this node does not keep its keys by slot")
        return None


class Translator:
    """One client's commands, however they are cut, on their way to the engine.
    What cannot be read passes: the engine will say so."""

    def __init__(self, presented: Presented) -> None:
        self.presented = presented
        self.kept = b""  # The beginning of a line or of a command that may be ours.
        self.words_left = 0  # Of a command that passes.
        self.bytes_left = 0  # Of its present word.
        self.opaque = False
        self.resp3 = False

    def feed(self, data: bytes) -> bytes:
        """What to pass on now."""
        if self.opaque:
            return data
        buffer = self.kept + data if self.kept else data
        out: list[bytes] = []
        sent = at = 0
        try:
            while at < len(buffer):
                if self.bytes_left:
                    size = min(self.bytes_left, len(buffer) - at)
                    self.bytes_left -= size
                    at += size
                    continue
                if self.words_left:
                    size, after = number(buffer, at, b"$")
                    self.words_left, self.bytes_left, at = self.words_left - 1, size + 2, after
                    continue
                words, after, passing = command(buffer, at)
                if words and (instead := self.translate(words)) is not None:
                    out += [buffer[sent:at], instead]
                    sent = after
                at = after
                self.words_left = passing
        except Incomplete:
            pass
        except ValueError:
            self.opaque, at = True, len(buffer)
        out.append(buffer[sent:at])
        self.kept = buffer[at:]
        return b"".join(out)

    def translate(self, words: list[bytes]) -> bytes | None:
        name = words[0].upper()
        if name == b"RESET":
            self.resp3 = False
        elif name == b"HELLO" and len(words) > 1:
            self.resp3 = words[1] == b"3"
        return self.presented.answer(words, self.resp3)


class Incomplete(Exception):
    """More has to come."""


def number(buffer: bytes, at: int, mark: bytes) -> tuple[int, int]:
    """The number in a line such as ``$5``, and where the line ends. Raises ``Incomplete``, or ``ValueError`` for another line."""
    end = buffer.find(b"\r\n", at, at + 32)
    if end < 0:
        if len(buffer) - at >= 32:
            raise ValueError
        raise Incomplete
    digits = buffer[at + 1 : end]
    if buffer[at : at + 1] != mark or not digits.isdigit():
        raise ValueError
    return int(digits), end + 2


def command(buffer: bytes, at: int) -> tuple[list[bytes], int, int]:
    """The command that begins here: its words if it may be ours, where what was read of it ends, and how many words pass unread.

    Raises ``Incomplete`` or ``ValueError``.
    """
    if buffer[at] != 0x2A:  # not an array: a line as people type it
        end = buffer.find(b"\n", at)
        if end < 0:
            if len(buffer) - at > COMMAND_BYTES:
                raise ValueError
            raise Incomplete
        words = buffer[at:end].split()
        return (words if words and words[0].upper() in OURS else []), end + 1, 0
    count, first = number(buffer, at, b"*")
    if not count:
        return [], first, 0
    size, place = number(buffer, first, b"$")
    if size > NAME_BYTES:
        return [], first, count
    if len(buffer) < place + size:
        raise Incomplete
    if buffer[place : place + size].upper() not in OURS:
        return [], first, count
    try:
        words, place = [], first
        for _ in range(count):
            size, place = number(buffer, place, b"$")
            if len(buffer) < place + size + 2:
                raise Incomplete
            words.append(buffer[place : place + size])
            place += size + 2
    except Incomplete:
        if len(buffer) - at > COMMAND_BYTES:
            return [], first, count
        raise
    return words, place, 0


class ToEngine(asyncio.Protocol):
    """A client's own connection to the primary."""

    def __init__(self, client: ToClient) -> None:
        self.client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.client.transport.write(data)

    def pause_writing(self) -> None:
        self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        self.client.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.client.transport.close()  # after what was answered has been sent


class ToClient(asyncio.Protocol):
    """A client; its connection to the primary is made when it says something."""

    def __init__(self, relay: CompatibleRelay) -> None:
        self.relay = relay
        self.translator = Translator(relay.presented)
        self.engine: asyncio.Transport | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.relay.clients += 1
        if self.relay.clients > self.relay.most:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        out = self.translator.feed(data)
        if self.engine is not None:
            self.engine.write(out)
            return
        self.first += out
        if self.connecting is None:
            self.transport.pause_reading()
            self.connecting = asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        try:
            engine = await self.relay.reach(self)
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            engine.abort()
            return
        self.engine = engine
        self.transport.resume_reading()  # before the write, which may have it pause again
        engine.write(self.first)
        self.first = b""

    def eof_received(self) -> bool:
        """Whoever says no more may still wait for answers."""
        if self.engine is None:
            return False
        self.engine.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.engine is not None:
            self.engine.pause_reading()

    def resume_writing(self) -> None:
        if self.engine is not None:
            self.engine.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.relay.clients -= 1
        if self.engine is not None:
            self.engine.close()


class CompatibleRelay:
    """All clients of one endpoint."""

    def __init__(self, directory: str) -> None:
        with open(directory + "/listen") as file:
            address, port, primary, node_id = file.read().split()
        self.listen, self.primary = (address, int(port)), (primary, int(port))
        self.presented = Presented(address, int(port), node_id)
        self.clients = 0
        # Two descriptors each.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = 2 * CONNECTIONS + 100 if hard == resource.RLIM_INFINITY else min(hard, 2 * CONNECTIONS + 100)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        self.most = (limit - 100) // 2

    async def reach(self, client: ToClient) -> asyncio.Transport:
        """A connection to the primary, from our own address. Raises ``OSError`` when there was none for a while."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CONNECT_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(until):
                    made = await loop.create_connection(lambda: ToEngine(client), *self.primary, local_addr=(self.listen[0], 0))
                    return made[0]
            except OSError:
                if loop.time() >= until or client.transport.is_closing():
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def run(self) -> None:
        server = await asyncio.get_running_loop().create_server(lambda: ToClient(self), *self.listen, backlog=512)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(CompatibleRelay(sys.argv[1]).run())
