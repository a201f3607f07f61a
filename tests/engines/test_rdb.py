"""What the head of an RDB says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekeep.engines.rdb import keys_of_first_database

AUX = b"\xfa\x09redis-ver\x068.0.99" + b"\xfa\x0aredis-bits\xc0\x40"  # a text, and an integer written as one
FUNCTION = b"\xf5\x40\x50" + b"f" * 0x50
PACKED = b"\xf5\xc3\x04\x40\x64abcd"  # four bytes that were a hundred


@pytest.mark.parametrize(
    ("head", "keys"),
    [
        (b"REDIS0011" + AUX + b"\xfe\x00\xfb\x05\x01", 5),
        (b"VALKEY080" + AUX + FUNCTION + PACKED + b"\xfe\x03\xfb\x41\x00\x00", 256),
        (b"REDIS0010" + b"\xfe\x00\xfb\x80\x00\x01\x00\x00\x00", 65536),
        (b"REDIS0011" + AUX + b"\xff" + b"\x00" * 8, None),  # empty
        (b"REDIS0011" + AUX + b"\xf7\x00", None),  # a module's, which is not read here
        (b"HELLO", None),
        (b"", None),
    ],
)
def test_the_keys_that_an_engine_counted(head: bytes, keys: int | None) -> None:
    assert keys_of_first_database(head) == keys


@given(st.integers(0, 200))
def test_a_head_that_ends_too_soon_says_nothing(length: int) -> None:
    whole = b"REDIS0011" + AUX + FUNCTION + b"\xfe\x00\xfb\x05\x01"
    assert keys_of_first_database(whole[:length]) == (5 if length >= len(whole) - 1 else None)


@given(st.binary(max_size=200))
def test_whatever_else_it_is_does_no_harm(tail: bytes) -> None:
    keys_of_first_database(b"REDIS0011" + tail)
