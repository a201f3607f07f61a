"""The form in which bytes lie in a vault: whatever is put in comes out, however it is cut, and nothing else ever does."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekeep.backup import box
from cachekeep.backup.box import Packer, Unpacker
from cachekeep.errors import Damaged

KEY = bytes(range(32))
WHOSE = ("", "demo", "nightly", "id", "0001.rdb")


def packed(content: bytes, pieces: int = 1, *, whose: tuple[str, ...] = WHOSE) -> bytes:
    packer, size = Packer(KEY, whose), max(len(content) // pieces, 1)
    made = [packer.head, *(packer.add(content[at : at + size]) for at in range(0, len(content), size))]
    return b"".join([*made, packer.finish()])


def opened(stored: bytes, size: int = 1 << 30, *, key: bytes = KEY, whose: tuple[str, ...] = WHOSE) -> bytes:
    unpacker = Unpacker(key, whose)
    got = b"".join(unpacker.add(stored[at : at + size]) for at in range(0, len(stored), size))
    unpacker.finish()
    return got


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that little content is many chunks."""
    monkeypatch.setattr(box, "CHUNK_BYTES", 64)


@given(st.binary(max_size=400), st.integers(1, 9), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_what_is_put_in_comes_out_however_it_is_cut(content: bytes, pieces: int, size: int) -> None:
    assert opened(packed(content, pieces), size) == content


@given(st.binary(max_size=300), st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_found(content: bytes, data: st.DataObject) -> None:
    stored = bytearray(packed(content))
    at = data.draw(st.integers(0, 8 * len(stored) - 1))
    stored[at // 8] ^= 1 << at % 8
    with pytest.raises(Damaged):
        opened(bytes(stored))


@given(st.binary(max_size=300), st.data())
@settings(max_examples=200, deadline=None)
def test_an_end_that_is_cut_off_is_found_and_nothing_false_was_said_before(content: bytes, data: st.DataObject) -> None:
    stored = packed(content)
    unpacker = Unpacker(KEY, WHOSE)
    assert content.startswith(unpacker.add(stored[: data.draw(st.integers(0, len(stored) - 1))]))
    with pytest.raises(Damaged, match="cut off"):
        unpacker.finish()


def chunks(stored: bytes) -> tuple[bytes, list[bytes]]:
    head, rest, found = stored[:24], stored[24:], []
    while rest:
        end = 4 + int.from_bytes(rest[:4], "big")
        found.append(rest[:end])
        rest = rest[end:]
    return head, found


def test_chunks_in_another_order_or_repeated_or_left_out_or_behind_the_last_are_found() -> None:
    head, found = chunks(packed(os.urandom(200)))
    assert len(found) == 4
    a, b, c, d = found
    for wrong in ([b, a, c, d], [a, a, b, c, d], [a, c, d], [a, b, c], [a, b, c, d, d], [a, b, d, c]):
        with pytest.raises(Damaged):
            opened(head + b"".join(wrong))


@pytest.mark.parametrize("place", range(len(WHOSE)))
def test_a_box_in_anothers_place_does_not_open(place: int) -> None:
    other = tuple("other" if at == place else word for at, word in enumerate(WHOSE))
    with pytest.raises(Damaged, match="another's"):
        opened(packed(b"content", whose=other))


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(Damaged):
        opened(packed(b"content"), key=bytes(32))


def test_two_boxes_of_the_same_content_have_nothing_in_common_but_their_form() -> None:
    """One data key seals many boxes, and nonces are counters: only the salt keeps them apart."""
    one, two = packed(b"content"), packed(b"content")
    assert one[:8] == two[:8]
    assert one[8:24] != two[8:24]
    assert one[28:] != two[28:]


def test_the_longest_chunk_that_nothing_compresses_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "CHUNK_BYTES", 1 << 20)
    content = os.urandom((1 << 20) + 1)
    assert opened(packed(content)) == content
