"""A stock Memcached that answers ``config get cluster``: by raw sockets in text and binary, and beside one that is left alone."""

from __future__ import annotations

import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.addresses import free_port, new_address

from cachekeep.cli.engines import engines
from cachekeep.engines import discovery
from cachekeep.errors import EngineMissing
from cachekeep.network.discovery import post
from cachekeep.toolchain import preload
from cachekeep.toolchain.installed import discover

TOLD = "7\n10.0.0.1|10.0.0.1|11211 10.0.0.2|10.0.0.2|11211\n"
ASK = b"config get cluster\r\n"


class Memcached:
    """One of this machine, with or without the library."""

    def __init__(self, program: str, directory: Path, library: str = "") -> None:
        self.directory, self.where = directory, (new_address(), free_port())
        directory.mkdir(mode=0o700)
        self.told = TOLD
        (directory / discovery.BOARD).write_text(discovery.first_board(TOLD))
        (directory / discovery.BOARD).chmod(0o600)
        self.process = subprocess.Popen(
            [program, "-u", "nobody", "-l", self.where[0], "-p", str(self.where[1]), "-U", "0", "-t", "2", "-m", "64"],
            cwd=directory,
            env={"LD_PRELOAD": library} if library else {},
        )
        until = time.monotonic() + 60
        while socket.socket().connect_ex(self.where) and time.monotonic() < until:
            time.sleep(0.005)

    def post(self, text: str) -> None:
        post(self.directory, "node", text)
        self.told = text

    def answer(self) -> bytes:
        return f"CONFIG cluster 0 {len(self.told)}\r\n{self.told}\r\nEND\r\n".encode()

    def connect(self) -> socket.socket:
        s = socket.create_connection(self.where, 20)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def converse(self, sent: bytes, cut: int = 0) -> bytes:
        """All that is answered to ``sent``, in packets of ``cut`` bytes; then the connection is closed."""
        with self.connect() as s:
            for start in range(0, len(sent), cut or len(sent)):
                s.sendall(sent[start : start + (cut or len(sent))])
            s.shutdown(socket.SHUT_WR)
            return s.makefile("rb").read()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return str(preload.library(tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="module")
def pair(library: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Memcached, Memcached]]:
    """One with the library, and a bare one."""
    program = shutil.which("memcached") or pytest.skip("needs memcached")
    place = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        made = (Memcached(program, place / "with", library), Memcached(program, place / "bare"))
        for one in made:
            stack.callback(one.process.wait)
            stack.callback(one.process.kill)
        yield made


@pytest.fixture
def node(pair: tuple[Memcached, Memcached]) -> Memcached:
    return pair[0]


def frame(opcode: int, key: bytes = b"", *, extras: bytes = b"", value: bytes = b"", opaque: int = 0) -> bytes:
    body = extras + key + value
    return struct.pack(">BBHBBHIIQ", 0x80, opcode, len(key), len(extras), 0, 0, len(body), opaque, 0) + body


def listed(text: str, opaque: int = 0) -> bytes:
    """The binary answer."""
    return struct.pack(">BBHBBHIIQ", 0x81, 0x60, 0, 4, 0, 0, 4 + len(text), opaque, 0) + bytes(4) + text.encode()


@pytest.mark.parametrize("cut", [0, 1, 3, 17])
@pytest.mark.parametrize("line", [ASK, b"config get cluster\n", b"config get cluster \r\n", b"config  get   cluster\r\n"])
def test_text(node: Memcached, line: bytes, cut: int) -> None:
    assert node.converse(line, cut) == node.answer()


def test_what_else_begins_like_that(node: Memcached) -> None:
    assert node.converse(b"config get nothing\r\n") == b"END\r\n"
    for line in (b"config\r\n", b"config get\r\n", b"config get a b\r\n", b"config set cluster 0 0\r\n", b"configget cluster\r\n"):
        assert node.converse(line) == b"ERROR\r\n", line
    assert node.converse(b"config get" + b" " * 100 + b"cluster\r\n") == b"ERROR\r\n"


WITHHELD = (
    b"slabs reassign 1 2",
    b"slabs automove 2",
    b"lru mode flat",
    b"lru tune 1 2 3 4",
    b"verbosity 2",
    b"verbosity 1 noreply",
)


@pytest.mark.parametrize("cut", [0, 1, 6])
@pytest.mark.parametrize("line", WITHHELD)
def test_what_changes_the_server_for_others_is_withheld(pair: tuple[Memcached, Memcached], line: bytes, cut: int) -> None:
    node, bare = pair
    assert node.converse(line + b"\r\nmn\r\n", cut) == b"ERROR\r\nMN\r\n"
    assert bare.converse(line + b"\r\nmn\r\n", cut) != b"ERROR\r\nMN\r\n"


def test_what_only_begins_like_it_is_not(node: Memcached) -> None:
    value = b"slabs automove 2\r\nverbosity 2\r\nlru mode flat"
    sent = b"set slabs 0 0 %d\r\n%s\r\nget slabs\r\nlru_crawler disable\r\n" % (len(value), value)
    got = b"STORED\r\nVALUE slabs 0 %d\r\n%s\r\nEND\r\n" % (len(value), value)
    answer = node.converse(sent)
    assert answer.startswith(got)
    assert b"ERROR\r\n" not in answer.removeprefix(got)


@pytest.mark.parametrize("cut", [0, 1, 7, 64])
def test_in_its_place_among_others_and_not_inside_values(node: Memcached, cut: int) -> None:
    value = ASK * 3 + b"NF k" + ASK
    sent = b"set k 0 0 %d\r\n%s\r\n" % (len(value), value) + ASK + b"get k\r\nget k\r\n" + ASK + ASK + b"mn\r\n" + ASK
    got = b"VALUE k 0 %d\r\n%s\r\nEND\r\n" % (len(value), value)
    assert node.converse(sent, cut) == b"STORED\r\n" + node.answer() + got * 2 + node.answer() * 2 + b"MN\r\n" + node.answer()


def test_beside_large_values(node: Memcached) -> None:
    value = (ASK + bytes(range(256))) * 3700
    assert len(value) > 1_000_000
    sent = b"set big 0 0 %d\r\n%s\r\n" % (len(value), value) + ASK + b"get big\r\n" + ASK + b"delete big\r\n"
    want = b"STORED\r\n" + node.answer() + b"VALUE big 0 %d\r\n%s\r\nEND\r\n" % (len(value), value) + node.answer()
    assert node.converse(sent) == want + b"DELETED\r\n"


@pytest.mark.parametrize("cut", [0, 1, 5, 24, 31])
def test_binary(node: Memcached, cut: int) -> None:
    asks = frame(0x60, b"cluster", opaque=99)
    value = asks * 3
    stored = frame(0x01, b"v", extras=bytes(8), value=value)
    with node.connect() as s:
        sent = asks + stored + asks + frame(0x00, b"v") + frame(0x0A, opaque=1) + asks
        for start in range(0, len(sent), cut or len(sent)):
            s.sendall(sent[start : start + (cut or len(sent))])
        s.shutdown(socket.SHUT_WR)
        got = s.makefile("rb").read()
    ours = listed(node.told, 99)
    assert got.startswith(ours + bytes((0x81, 0x01)))
    assert got.count(ours) == 3
    assert got.count(value) == 1
    assert got.endswith(struct.pack(">BBHBBHIIQ", 0x81, 0x0A, 0, 0, 0, 0, 0, 1, 0) + ours)


def test_binary_questions_of_another_shape_are_refused_as_ever(pair: tuple[Memcached, Memcached]) -> None:
    for asked in (frame(0x60, b"clusters"), frame(0x60, b"cluster", extras=bytes(4)), frame(0x60)):
        with_library, bare = (one.converse(asked + frame(0x07) * 3) for one in pair)
        assert with_library == bare


def test_a_reader_sees_one_list_or_the_other(node: Memcached) -> None:
    each = [[f"10.0.{n % 250}.{i}" for i in range(1 + n % 60)] for n in range(200)]
    lists = [f"{n}\n" + " ".join(f"{a}|{a}|11211" for a in addresses) + "\n" for n, addresses in enumerate(each)]
    whole = {f"CONFIG cluster 0 {len(t)}\r\n{t}\r\nEND\r\n".encode() for t in [*lists, TOLD]}
    over, seen, wrong = threading.Event(), 0, []

    def ask() -> None:
        nonlocal seen
        with node.connect() as s:
            file = s.makefile("rb")
            while not over.is_set():
                s.sendall(ASK)
                head = file.readline()
                rest = file.read(int(head.split()[3]) + 7)
                seen += 1
                if head + rest not in whole:
                    wrong.append(head + rest)

    readers = [threading.Thread(target=ask) for _ in range(3)]
    for one in readers:
        one.start()
    for text in lists * 5:
        node.post(text)
    over.set()
    for one in readers:
        one.join()
    assert not wrong
    assert seen > 50
    node.post(TOLD)
    assert node.converse(ASK) == node.answer()


def test_who_does_not_read_waits_alone_and_gets_all_of_it(node: Memcached) -> None:
    long = "8\n" + " ".join(f"10.0.0.{i}|10.0.0.{i}|11211" for i in range(60)) + "\n"
    node.post(long)
    try:
        with node.connect() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            questions = 1000
            sending = threading.Thread(target=lambda: (s.sendall(ASK * questions), s.shutdown(socket.SHUT_WR)))
            sending.start()
            assert node.converse(ASK) == node.answer(), "others are served"
            got = s.makefile("rb").read()
            sending.join()
        assert got == node.answer() * questions
        for _ in range(20):  # who leaves in the middle leaves nothing to whoever gets the descriptor
            with node.connect() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.setblocking(False)
                with pytest.raises(BlockingIOError):
                    while True:
                        s.send(ASK * 1000)
            assert node.converse(b"get none\r\n" + ASK) == b"END\r\n" + node.answer()
    finally:
        node.post(TOLD)


def test_everything_else_is_answered_as_by_a_bare_one(pair: tuple[Memcached, Memcached]) -> None:
    chance = random.Random(9)
    keys = [b"k%d" % n for n in range(8)] + [b"config", b"cluster", b"a" * 250]
    for pair_of in range(60):
        sent = b""
        for _ in range(chance.randrange(1, 30)):
            key = chance.choice(keys)
            value = bytes(chance.randrange(256) for _ in range(chance.choice((0, 1, 20, 300)))) + chance.choice((b"", ASK))
            head = b"%s %s 0 0 %d" % (chance.choice((b"set", b"add", b"append")), key, len(value))
            sent += chance.choice(
                [
                    head + chance.choice((b"", b" noreply")) + b"\r\n" + value + b"\r\n",
                    b"get %s %s\r\n" % (key, chance.choice(keys)),
                    b"delete %s\r\n" % key,
                    b"mg %s v k\r\n" % key,
                    b"ms %s %d\r\n%s\r\n" % (key, len(value), value),
                    b"md %s k\r\n" % key,
                    b"incr %s 1\r\n" % key,
                    b"nonsense %s\r\n" % key,
                ]
            )
        cut = chance.choice((0, 0, 5, 50))
        with_library, bare = (one.converse(sent, cut) for one in pair)
        assert with_library == bare, pair_of


def test_without_a_board_it_does_nothing(library: str, tmp_path: Path) -> None:
    program = shutil.which("memcached") or pytest.skip("needs memcached")
    one = Memcached.__new__(Memcached)
    one.where = (new_address(), free_port())
    argv = [program, "-u", "nobody", "-l", one.where[0], "-p", str(one.where[1]), "-U", "0", "-t", "1"]
    one.process = subprocess.Popen(argv, cwd=tmp_path, env={"LD_PRELOAD": library})
    try:
        while socket.socket().connect_ex(one.where):
            time.sleep(0.005)
        assert one.converse(ASK) == b"ERROR\r\n"
    finally:
        one.process.kill()
        one.process.wait()


# -- whether a build gets it


def test_a_build_is_tried_with_it(library: str, tmp_path: Path) -> None:
    if shutil.which("memcached") is None:
        pytest.skip("needs memcached")
    builds = [b for b in discover([], tmp_path).builds if b.engine == "memcached"]
    assert builds
    assert all(Path(b.preload).is_file() and not b.preload_problem for b in builds)
    assert [b for b in discover([], tmp_path).builds if b.engine == "memcached"] == builds, "and remembered"


def test_why_a_build_has_none(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = tmp_path / "memcached"
    stubborn.write_text("#!/bin/sh\nexit 3\n")
    stubborn.chmod(0o755)
    assert preload.try_with(stubborn, Path(library)) == "it does not start (exit code 3)"
    if (program := shutil.which("memcached")) is not None:
        nothing = tmp_path / "nothing.so"
        subprocess.run(["cc", "-shared", "-o", str(nothing), "-x", "c", "/dev/null"], check=True)
        assert "ERROR" in preload.try_with(Path(program), nothing)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineMissing, match="no C compiler: apt install gcc"):
        preload.library(tmp_path / "state")


def test_what_nodes_lack_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/bin/memcached").is_file():
        pytest.skip("needs memcached")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = discover([], tmp_path)
    builds = [b for b in found.builds if b.engine == "memcached"]
    assert builds
    assert not any(b.preload or found.command(b.program)[1:] for b in builds)
    assert len(found.lacks) == len(builds)
    said = CliRunner().invoke(engines, ["--data-dir", str(tmp_path)]).output
    assert f"lacks: {found.lacks[0]}" in said.replace("\n", " ")
    assert "apt install gcc libc6-dev" in said
    monkeypatch.undo()
    if shutil.which("cc"):
        assert not discover([], tmp_path).lacks, "it is tried again"
