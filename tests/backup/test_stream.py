"""A replication stream as commands: the same wherever it is cut, and cut only where nothing is half done."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekeep.backup.stream import commands, whole
from cachekeep.errors import Damaged

WORD = st.binary(max_size=12) | st.sampled_from([b"\r\n", b"*1\r\n$4\r\nPING\r\n", b"\x00", b"EXEC"])
COMMAND = st.lists(WORD, max_size=3).map(lambda words: [b"SET", *words])


def coded(words: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_a_cut_at_any_byte_is_behind_the_last_whole_command_or_transaction() -> None:
    parts = [[b"SET", b"a", b"\r\n*2"], [b"MULTI"], [b"SET", b"b", b""], [b"EXEC"], [b"PING"]]
    data, good = b"", {0}
    for number, words in enumerate(parts):
        data += coded(words)
        if number not in (1, 2):
            good.add(len(data))
    for cut in range(len(data) + 1):
        assert whole(data[:cut]) == max(at for at in good if at <= cut)


@given(st.lists(COMMAND, max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_parsed_is_what_was_said(said: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(map(coded, said))
    assert [words for _, words in commands(stream)] == said
    cut = data.draw(st.integers(0, len(stream)))
    first = list(commands(stream[:cut]))
    end = first[-1][0] if first else 0
    assert [words for _, words in [*first, *commands(stream, end)]] == said


def test_what_is_no_stream_is_said() -> None:
    for wrong in (b"SET a b\r\n", b"*1\r\n+OK\r\n", b"*x\r\n"):
        with pytest.raises(Damaged, match="at byte 0"):
            list(commands(wrong))
