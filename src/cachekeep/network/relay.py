"""Answers at a Memcached configuration endpoint. A program of its own: ``python -I -S relay.py DIRECTORY``.

This answers ``config get cluster`` (in binary: opcode 0x60), ``get(s) AmazonElastiCache:cluster`` and ``quit``, and passes every
other command to the first node that can be reached, so that a client which takes the endpoint for a node finds one. ``version``
is answered even if no node can be reached: clients ask for it before they ask for the list. It outlives the control plane, hence
the standard library alone, one thread and as little memory as Python allows.

``DIRECTORY/listen`` holds address, port and the version to tell. ``DIRECTORY/cluster`` holds node names in its first line and the
list itself in the rest; it is replaced as a whole and looked at before every answer, so an answer is never older than the file.
"""

import os
import resource
import selectors
import socket
import sys
import time

LINE_BYTES = 65536  # A get of many keys may be long; Memcached itself allows no more than this by default.
BUFFER_BYTES = 262144
CONNECTIONS = 1000
LINE_SECONDS = 20.0  # To send a whole command line: who is slower is not a client.
IDLE_SECONDS = 600.0
HOLD_SECONDS = 1.0
CONNECT_SECONDS = 0.3
HEADER_BYTES, NO_OP, CONFIG_GET = 24, 0x0A, 0x60  # Of the binary protocol.
AVOID_SECONDS = 2.0  # Everybody waits while one connects, so a dead node is not tried for every client.

STORES = {b"set", b"add", b"replace", b"append", b"prepend", b"cas"}


class Directory:
    """The two files."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path + "/listen") as file:
            address, port, self.version = file.read().split()
        self.listen = (address, int(port))
        self._stamp: object = None
        self._payload = b""
        self.nodes: list[tuple[str, int]] = []

    def payload(self) -> bytes:
        """The list as it is now."""
        found = os.stat(self.path + "/cluster")
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            with open(self.path + "/cluster", "rb") as file:
                _names, _, self._payload = file.read().partition(b"\n")
            entries = self._payload.split(b"\n")[1].split()
            self.nodes = [((ip or host).decode(), int(port)) for host, ip, port in (e.split(b"|") for e in entries)]
            self._stamp = stamp
        return self._payload


class Replies:
    """Counts whole replies in what a node sends, however it is cut."""

    def __init__(self) -> None:
        self.skip = 0
        self.last = False
        self.line = bytearray()

    def feed(self, data: bytes) -> int:
        """How many replies end in ``data``."""
        ended = at = 0
        while at < len(data):
            if self.skip:
                size = min(self.skip, len(data) - at)
                self.skip -= size
                at += size
                ended += self.last and not self.skip
                continue
            end = data.find(b"\n", at) + 1
            self.line += data[at : end or len(data)]
            if not end:
                break
            at = end
            words = bytes(self.line).split()
            self.line.clear()
            head = words[0] if words else b""
            place = {b"VALUE": 3, b"VA": 1}.get(head, len(words))
            if place < len(words) and words[place].isdigit():
                # A get goes on after a value until END; a meta get is over with it.
                self.skip, self.last = int(words[place]) + 2, head == b"VA"
            elif head not in (b"STAT", b"ITEM"):
                ended += 1
        return ended


class Connection:
    """A client, and its node once it needed one."""

    def __init__(self, client: socket.socket, now: float) -> None:
        self.client = client
        self.node: socket.socket | None = None
        self.inbox = bytearray()
        self.to_client = bytearray()
        self.to_node = bytearray()
        self.data_left = 0  # Of a value that follows a storage command.
        self.binary = False
        self.outbox = bytearray()  # Binary: what came from the node, up to a frame's head that is not whole.
        self.reply_left = 0
        self.no_ops: list[bool] = []  # Of those that the node owes: whether it stands for a question that is ours to answer.
        self.pending = 0  # Replies that the node owes.
        self.replies = Replies()
        self.held_until = 0.0  # Our own answer waits for the node's, which was asked for first.
        self.spoke = False
        self.closing = False
        self.busy_at = now
        self.line_since = 0.0


class DiscoveryRelay:
    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.selector = selectors.DefaultSelector()
        self.connections: dict[socket.socket, Connection] = {}
        # Two descriptors each. Without one to spare, accept would fail again and again.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = 2 * CONNECTIONS + 100 if hard == resource.RLIM_INFINITY else min(hard, 2 * CONNECTIONS + 100)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        self.most = (limit - 100) // 2
        self.avoid: dict[tuple[str, int], float] = {}
        family = socket.AF_INET6 if ":" in directory.listen[0] else socket.AF_INET
        self.server = socket.socket(family, socket.SOCK_STREAM)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.bind(directory.listen)
        self.server.listen(512)
        self.server.setblocking(False)
        self.selector.register(self.server, selectors.EVENT_READ)

    def run(self) -> None:
        swept_at = 0.0
        while True:
            held = any(c.held_until for c in self.connections.values())
            for key, events in self.selector.select(0.05 if held else 5.0 if self.connections else None):
                if key.fileobj is self.server:
                    self.accept()
                else:
                    connection: Connection = key.data
                    if connection.client in self.connections:
                        self.serve(connection, key.fileobj, events)
            now = time.monotonic()
            if held or now - swept_at > 1.0:
                swept_at = now
                self.sweep(now)

    def accept(self) -> None:
        try:
            client, _ = self.server.accept()
        except OSError:
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) >= self.most:
            # The one that has been silent for longest makes room: many idle clients must not shut out a live one.
            self.close(min(self.connections.values(), key=lambda c: c.busy_at))
        connection = Connection(client, time.monotonic())
        self.connections[client] = connection
        self.selector.register(client, selectors.EVENT_READ, connection)

    def sweep(self, now: float) -> None:
        for c in list(self.connections.values()):
            if c.held_until and now >= c.held_until:
                c.pending = 0  # Commands that are answered by silence: no reply will come.
                self.serve(c, None, 0)
            elif now - c.busy_at > IDLE_SECONDS or (c.line_since and now - c.line_since > LINE_SECONDS):
                self.close(c)

    def serve(self, c: Connection, ready: object, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                c.busy_at = time.monotonic()
                data = ready.recv(65536)  # type: ignore[attr-defined]
                if not data:
                    c.closing = True
                elif ready is c.client:
                    c.inbox += data
                elif c.binary:
                    self.tell(c, data)
                else:
                    c.to_client += data
                    c.pending = max(0, c.pending - c.replies.feed(data))
            if not c.closing:
                self.read(c)
            if c.to_node and c.node is not None:
                del c.to_node[: c.node.send(c.to_node)]
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            c.closing = True
        try:
            if c.to_client:
                del c.to_client[: c.client.send(c.to_client)]
        except BlockingIOError:
            pass
        except OSError:
            c.closing, c.to_client = True, bytearray()
        if c.closing and not c.to_client:
            self.close(c)
            return
        want = (0 if c.closing or self.full(c) else selectors.EVENT_READ) | (selectors.EVENT_WRITE if c.to_client else 0)
        self.watch(c, c.client, want)
        if c.node is not None:
            want = selectors.EVENT_READ if len(c.to_client) < BUFFER_BYTES and not c.closing else 0
            self.watch(c, c.node, want | (selectors.EVENT_WRITE if c.to_node else 0))

    @staticmethod
    def full(c: Connection) -> bool:
        return (
            len(c.to_node) > BUFFER_BYTES or len(c.to_client) > BUFFER_BYTES or bool(c.held_until and len(c.inbox) > BUFFER_BYTES)
        )

    def watch(self, c: Connection, which: socket.socket, events: int) -> None:
        known = self.selector.get_map().get(which)
        if not events:
            if known:
                self.selector.unregister(which)
        elif known is None:
            self.selector.register(which, events, c)
        elif known.events != events:
            self.selector.modify(which, events, c)

    def read(self, c: Connection) -> None:
        """Take whole commands from what came in, in order."""
        c.held_until = c.held_until if c.pending else 0.0
        while c.inbox and not c.closing:
            if self.full(c):
                return
            if c.binary or (c.inbox[0] == 0x80 and not c.spoke):
                c.binary = True
                if self.ask(c):
                    continue
                return
            c.spoke = True
            if c.data_left:
                size = min(c.data_left, len(c.inbox))
                c.data_left -= size
                self.forward(c, size)
                continue
            end = c.inbox.find(b"\n")
            if end < 0:
                if len(c.inbox) > LINE_BYTES:
                    c.to_client += b"CLIENT_ERROR line too long\r\n"
                    c.closing = True
                c.line_since = c.line_since or time.monotonic()
                return
            c.line_since = 0.0
            words = bytes(c.inbox[: end + 1]).split()
            answer = self.answer(c, words)
            if answer is not None:
                if c.pending:
                    c.held_until = c.held_until or time.monotonic() + HOLD_SECONDS
                    return
                del c.inbox[: end + 1]
                c.to_client += answer
                c.closing = words[:1] == [b"quit"]
                continue
            c.data_left = value_bytes(words)
            self.forward(c, end + 1)
            c.pending += words[-1] != b"noreply"
        c.line_since = c.line_since if c.inbox else 0.0

    def answer(self, c: Connection, words: "list[bytes]") -> "bytes | None":
        """What we answer ourselves; None for everything else."""
        if [w.lower() for w in words[:2]] == [b"config", b"get"]:
            if words[2:] != [b"cluster"]:
                return b"END\r\n" if len(words) == 3 else b"ERROR\r\n"
            return framed(b"CONFIG cluster 0", self.directory.payload())
        if words in ([b"get", b"AmazonElastiCache:cluster"], [b"gets", b"AmazonElastiCache:cluster"]):
            payload = self.directory.payload()
            unique = b" " + payload.split(b"\n")[0] if words[0] == b"gets" else b""
            return framed(b"VALUE AmazonElastiCache:cluster 0", payload, unique)
        if words == [b"version"] and self.node_of(c) is None:
            return b"VERSION " + self.directory.version.encode() + b"\r\n"
        if words == [b"quit"]:
            return b""
        return b"ERROR\r\n" if not words else None

    def ask(self, c: Connection) -> bool:
        """Binary: pass on a frame, or what there is of it. A question for the list becomes a no-op, so that its answer keeps its
        place. False: more has to come first."""
        if c.data_left:
            size = min(c.data_left, len(c.inbox))
            c.data_left -= size
            self.forward(c, size)
            return True
        if len(c.inbox) < HEADER_BYTES:
            return False
        opcode, body = c.inbox[1], int.from_bytes(c.inbox[8:12], "big")
        if opcode == CONFIG_GET and body == len(b"cluster"):
            if len(c.inbox) < HEADER_BYTES + body:
                return False
            if c.inbox[HEADER_BYTES : HEADER_BYTES + body] == b"cluster":
                opaque = bytes(c.inbox[12:16])
                del c.inbox[: HEADER_BYTES + body]
                if c.node is None:  # nobody owes a reply
                    c.to_client += self.config_frame(opaque)
                    return True
                c.inbox[:0] = b"\x80" + bytes((NO_OP,)) + bytes(10) + opaque + bytes(8)
                c.no_ops.append(True)
                self.forward(c, HEADER_BYTES)
                return True
        if opcode == NO_OP:
            c.no_ops.append(False)
        c.data_left = body
        self.forward(c, HEADER_BYTES)
        return True

    def tell(self, c: Connection, data: bytes) -> None:
        """Binary: pass on what a node says."""
        c.outbox += data
        while c.outbox:
            if c.reply_left:
                size = min(c.reply_left, len(c.outbox))
                c.reply_left -= size
            elif len(c.outbox) < HEADER_BYTES:
                return
            else:
                size = HEADER_BYTES
                if c.outbox[1] == NO_OP and c.no_ops and c.no_ops.pop(0):
                    c.outbox[:size] = frame = self.config_frame(bytes(c.outbox[12:16]))
                    size = len(frame)
                else:
                    c.reply_left = int.from_bytes(c.outbox[8:12], "big")
            c.to_client += c.outbox[:size]
            del c.outbox[:size]

    def config_frame(self, opaque: bytes) -> bytes:
        payload = self.directory.payload()
        head = bytes((0x81, CONFIG_GET, 0, 0, 4, 0, 0, 0)) + (4 + len(payload)).to_bytes(4, "big")
        return head + opaque + bytes(8) + bytes(4) + payload

    def node_of(self, c: Connection) -> "socket.socket | None":
        if c.node is None:
            c.node = self.reach()
            if c.node is not None:
                self.selector.register(c.node, selectors.EVENT_READ, c)
        return c.node

    def forward(self, c: Connection, size: int) -> None:
        if self.node_of(c) is None:
            c.to_client += b"SERVER_ERROR no node can be reached\r\n"
            c.closing = True
            return
        c.to_node += c.inbox[:size]
        del c.inbox[:size]

    def reach(self) -> "socket.socket | None":
        self.directory.payload()
        now = time.monotonic()
        for address in self.directory.nodes:
            if self.avoid.get(address, 0.0) > now:
                continue
            try:
                node = socket.create_connection(address, CONNECT_SECONDS)
            except OSError:
                self.avoid[address] = time.monotonic() + AVOID_SECONDS
                continue
            node.setblocking(False)
            node.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return node
        return None

    def close(self, c: Connection) -> None:
        self.connections.pop(c.client, None)
        for which in (c.client, c.node):
            if which is not None:
                self.watch(c, which, 0)
                which.close()


def value_bytes(words: "list[bytes]") -> int:
    """Length of the value that follows this command line, with its line end."""
    name, position = words[0].lower(), 4 if words[0].lower() in STORES else 2
    if (name in STORES or name == b"ms") and len(words) > position:
        digits = words[position].lstrip(b"S")
        if digits.isdigit() and len(digits) < 10:
            return int(digits) + 2
    return 0


def framed(head: bytes, payload: bytes, unique: bytes = b"") -> bytes:
    return b"%s %d%s\r\n%s\r\nEND\r\n" % (head, len(payload), unique, payload)


if __name__ == "__main__":
    DiscoveryRelay(Directory(sys.argv[1])).run()
