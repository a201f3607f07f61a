"""What nodes say that they hold, compared."""

from __future__ import annotations

import pytest

from cachekeep.engines.replies import info, node_view, stream
from cachekeep.model import Stream, branches

ALONE = Stream("a", 100)
"""The first history."""
SAME = Stream("b", 100, "a", 100)
"""Leads since it had a hundred bytes of it, and has written nothing."""
MORE = Stream("b", 130, "a", 100)
"""And has written."""


@pytest.mark.parametrize(
    ("one", "other", "includes"),
    [
        (ALONE, ALONE, True),
        (ALONE, Stream("a", 99), True),
        (ALONE, Stream("a", 101), False),
        # who went on from it
        (SAME, ALONE, True),
        (SAME, Stream("a", 101), False),
        (MORE, ALONE, True),
        (MORE, Stream("a", 101), False),
        # whoever never followed the new one has all that it began with, and nothing else
        (ALONE, SAME, True),
        (Stream("a", 99), SAME, False),
        (ALONE, MORE, False),
        (Stream("a", 1000), MORE, False),
        # two that went on from the same, each its own way
        (Stream("c", 500, "a", 100), SAME, True),
        (Stream("c", 500, "a", 90), SAME, False),
        (Stream("c", 500, "a", 100), MORE, False),
        # strangers, however far they are
        (Stream("x", 1000), ALONE, False),
        (Stream("x", 1000, "y", 1000), SAME, False),
        (Stream("x", 1000), Stream("z", 10), False),
    ],
)
def test_who_holds_all_that_another_does(one: Stream, other: Stream, includes: bool) -> None:
    assert one.includes(other) is includes


@pytest.mark.parametrize(
    ("one", "other", "said", "includes"),
    [
        # a node that was fed anew tells nothing of where its history comes from; the one that fed it does
        (Stream("b", 130), ALONE, (MORE,), True),
        (Stream("b", 130), Stream("a", 101), (MORE,), False),
        (Stream("b", 90), ALONE, (MORE,), False),
        (Stream("b", 90), Stream("a", 90), (MORE,), True),
        (ALONE, Stream("b", 100), (MORE,), True),
        (ALONE, Stream("b", 101), (MORE,), False),
        # by way of several leads
        (Stream("c", 200), ALONE, (MORE, Stream("c", 160, "b", 150)), True),
        (Stream("c", 200), Stream("b", 151), (MORE, Stream("c", 160, "b", 150)), False),
        (Stream("c", 200), ALONE, (Stream("c", 160, "b", 150),), False),
        # of those who followed late and early it is the latest who tells how much is the same
        (Stream("b", 130), Stream("a", 95), (Stream("b", 120, "a", 90), MORE), True),
        (Stream("b", 130), Stream("a", 95), (MORE, Stream("b", 120, "a", 90)), True),
    ],
)
def test_what_others_say_tells_where_a_history_comes_from(
    one: Stream, other: Stream, said: tuple[Stream, ...], includes: bool
) -> None:
    assert not one.includes(other) or one.history == other.history
    assert one.includes(other, branches(said)) is includes


PRIMARY = b"""# Replication\r
role:master\r
connected_slaves:1\r
slave0:ip=127.0.0.2,port=6379,state=online,offset=140,lag=0\r
master_failover_state:no-failover\r
master_replid:8c1d\r
master_replid2:77aa\r
master_repl_offset:154\r
second_repl_offset:101\r
repl_backlog_active:1\r
"""
REPLICA = b"""# Replication\r
role:slave\r
master_host:127.0.0.1\r
master_port:6379\r
master_link_status:down\r
slave_read_repl_offset:150\r
slave_repl_offset:140\r
master_link_down_since_seconds:3\r
master_replid:8c1d\r
master_replid2:0000\r
master_repl_offset:154\r
second_repl_offset:-1\r
repl_backlog_active:1\r
"""
NOBODY = REPLICA.replace(b"slave_repl_offset:140", b"slave_repl_offset:1").replace(b"active:1", b"active:0").replace(b":154", b":0")


@pytest.mark.parametrize(
    ("said", "held"),
    [(PRIMARY, Stream("8c1d", 154, "77aa", 100)), (REPLICA, Stream("8c1d", 140)), (NOBODY, None)],
    ids=["primary", "replica", "nobody"],
)
def test_what_an_engine_says_is_read_the_same_by_heartbeats_and_looks(said: bytes, held: Stream | None) -> None:
    """A replica has what it has carried out, not what its primary had, nor what it has only read."""
    assert stream(said) == held
    assert node_view(info(said), None, {}).stream == held
