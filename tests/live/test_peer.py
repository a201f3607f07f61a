"""An address is no identity: who listens where an engine was is told no password."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.addresses import new_address

from cachekeep.compute.line import LineLost, connect, parse_resp, resp
from cachekeep.compute.peer import served, stranger

PORT = 6379
NOBODY = 65534
THIEF = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listens", flush=True)
if sys.argv[4] == "accept":
    line, _ = listener.accept()
    print("accepted", flush=True)
    line.settimeout(3)
    try:
        line.sendall(b"+OK\\r\\n" * 9)
        print(line.recv(4096), flush=True)
    except OSError as error:
        print(error, flush=True)
sys.stdin.read()
"""


class Thief:
    def __init__(self, user: int, manner: str) -> None:
        self.address = new_address()
        argv = [sys.executable, "-S", "-c", THIEF, self.address, str(PORT), str(user), manner]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout
        assert self.said.readline() == "listens\n"

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(params=["accept", "wait"])
def thief(request: pytest.FixtureRequest) -> Iterator[Thief]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Thief(NOBODY, request.param)
    yield made
    made.close()


async def test_another_user_who_listens_where_an_engine_was_is_told_nothing(thief: Thief) -> None:
    with pytest.raises(LineLost, match=f"user {NOBODY} listens at {thief.address}"):
        await connect(thief.address, PORT, parse_resp, greeting=resp(("AUTH", "admin", "hush")), secret=True)
    if thief.process.args[-1] == "accept":  # type: ignore[index]
        assert thief.said.readline() == "accepted\n"
        assert "hush" not in await asyncio.to_thread(thief.said.readline)


@pytest.mark.parametrize("manner", ["accept", "wait"])
def test_who_is_ours_is_no_stranger(manner: str) -> None:
    friend = Thief(os.geteuid(), manner)
    try:
        with socket.create_connection((friend.address, PORT), timeout=30) as line:
            if manner == "accept":
                assert friend.said.readline() == "accepted\n"
            assert stranger(line) is None
    finally:
        friend.close()


def test_an_address_is_served_only_by_who_is_ours() -> None:
    """Whatever the process says that we speak to."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    friend, thief, nobody = Thief(os.geteuid(), "wait"), Thief(NOBODY, "wait"), new_address()
    try:
        with socket.create_connection((friend.address, PORT), timeout=5) as line:
            assert served(line, {friend.address, thief.address, nobody}, PORT) == {friend.address}
            assert served(line, {friend.address}, PORT + 1) == frozenset()
    finally:
        friend.close()
        thief.close()


def test_of_what_is_closed_nothing_is_known() -> None:
    friend = Thief(os.geteuid(), "accept")
    with socket.create_connection((friend.address, PORT), timeout=30) as line:
        assert friend.said.readline() == "accepted\n"
        friend.close()
        assert stranger(line) is None
