"""A recorder, told by a primary that the test is what an engine says only now and then."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest
from tests.addresses import new_address

from cachekeep.backup import recorder


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_who_waits_at_the_primary_is_answered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valkey's CLUSTER SETSLOT waits for its replicas: half a second for each, if it were answered at the next turn only."""
    monkeypatch.setattr(recorder, "TICK_SECONDS", 3600.0)
    with socket.create_server((new_address(), 0)) as listener:
        address, port = listener.getsockname()
        target = {"address": address, "port": port, "user": "", "password": "", "rebase_seconds": 3600}
        (tmp_path / "target.json").write_text(json.dumps(target))
        threading.Thread(target=recorder.Recorder(str(tmp_path)).run, daemon=True).start()
        listener.settimeout(60)
        primary, _ = listener.accept()
        primary.settimeout(60)
        with primary, primary.makefile("rb") as said:

            def told() -> list[bytes]:
                words = []
                for _ in range(int(said.readline()[1:])):
                    words.append(said.read(int(said.readline()[1:]) + 2)[:-2])
                return words

            while told()[0] != b"PSYNC":
                primary.sendall(b"+OK\r\n")
            primary.sendall(b"+FULLRESYNC %s 100\r\n$3\r\nRDB" % (b"a" * 40))
            assert told() == [b"REPLCONF", b"ACK", b"100"]
            asks = command(b"REPLCONF", b"GETACK", b"*")
            primary.sendall(asks)
            assert told() == [b"REPLCONF", b"ACK", b"%d" % (100 + len(asks))]
            os.unlink(tmp_path / "target.json")
