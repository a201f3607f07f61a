from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekeep.errors import Unusable
from cachekeep.network.addresses import free

POOL = "127.77.0.0/16"


@given(st.text(), st.integers(0, 50), st.sets(st.integers(0, 65535).map(lambda n: f"127.77.{n // 256}.{n % 256}")))
def test_free_addresses_are_distinct_unused_and_the_same_again(seed: str, count: int, used: set[str]) -> None:
    found = free(POOL, used, count, seed)
    assert len(set(found)) == len(found) == count
    assert not used & set(found)
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network(POOL) and a.rpartition(".")[2] not in ("0", "255") for a in found)
    assert free(POOL, used, count, seed) == found


def test_all_of_a_pool_and_no_more() -> None:
    every = {f"10.0.0.{n}" for n in range(1, 255)}
    assert set(free("10.0.0.0/24", (), 1000, "a")) == every
    assert free("10.0.0.0/24", every - {"10.0.0.7"}, 3, "b") == ("10.0.0.7",)
    assert free("10.0.0.0/24", every, 1, "c") == ()
    assert set(free("10.0.0.5, 10.0.0.0", {"10.0.0.9"}, 9, "d")) == {"10.0.0.5", "10.0.0.0"}
    assert free("10.0.0.8/32", (), 2, "e") == ("10.0.0.8",)
    assert len(free("fd00::/64", (), 5, "f")) == 5


def test_seeds_begin_at_different_places() -> None:
    assert len({free(POOL, (), 1, f"seed {n}") for n in range(50)}) > 40


@pytest.mark.parametrize("pool", ["", "nonsense", "10.0.0.1/8", "10.0.0.1,", "10.0.0.0/33"])
def test_a_pool_that_cannot_be_read(pool: str) -> None:
    with pytest.raises(Unusable, match="address pool"):
        free(pool, (), 1, "a")
