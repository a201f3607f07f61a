"""Slots: even, and moved as seldom as can be."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cachekeep.plan.slots.ranges import SLOTS, common, compact, count, even, expand, moves, rebalance, take, union, without

some_slots = st.sets(st.integers(0, 199)).map(frozenset)


@given(some_slots, some_slots)
def test_ranges_are_sets(one, other):
    a, b = compact(one), compact(other)
    assert set(expand(a)) == one
    assert count(a) == len(one)
    assert set(expand(union(a, b))) == one | other
    assert set(expand(common(a, b))) == one & other
    assert set(expand(without(a, b))) == one - other
    for ranges in (a, union(a, b), common(a, b), without(a, b)):
        assert ranges == compact(expand(ranges)), "ascending, none touching the next"


@given(some_slots, st.integers(0, 250))
def test_the_first_so_many(slots, number):
    assert list(expand(take(compact(slots), number))) == sorted(slots)[:number]


@given(st.integers(1, 500))
def test_even_shares_cover_all_slots_once(shards):
    dealt = even([f"{i:04}" for i in range(shards)])
    assert sorted(s for r in dealt.values() for s in expand(r)) == list(range(SLOTS))
    sizes = {count(r) for r in dealt.values()}
    assert max(sizes) - min(sizes) <= 1
    assert all(len(r) == 1 for r in dealt.values())


def test_even_shares_are_those_that_users_know():
    assert even(["a", "b", "c"]) == {"a": ((0, 5461),), "b": ((5462, 10922),), "c": ((10923, 16383),)}


@st.composite
def scattered(draw, slots=12):
    """Slots dealt out at random among some shards, a few to nobody; and the shards that are to be."""
    owners = draw(st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=slots, max_size=slots))
    ids = draw(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, unique=True))
    return {o: compact(i for i, x in enumerate(owners) if x == o) for o in set(owners) - {""}}, ids, slots


@given(scattered())
def test_rebalancing_moves_no_slot_more_than_any_even_deal_must(case):
    current, ids, slots = case
    target = rebalance(current, ids, slots=slots)
    assert sorted(s for r in target.values() for s in expand(r)) == list(range(slots))
    small, odd = divmod(slots, len(ids))
    assert sorted(count(r) for r in target.values()) == sorted([small] * (len(ids) - odd) + [small + 1] * odd)
    moved = sum(count(m.slots) for m in moves(current, target))
    had = sum(count(r) for r in current.values())
    # Every way to deal out the odd slots: a shard with a share of q that has c can keep min(q, c) of them, and never more.
    best = max(
        sum(min(small + (id in lucky), count(current.get(id, ()))) for id in ids) for lucky in itertools.combinations(ids, odd)
    )
    assert moved == had - best


@given(scattered(slots=60))
def test_moves_turn_what_is_into_what_shall_be(case):
    current, ids, slots = case
    target = rebalance(current, ids, slots=slots)
    now = {id: set(expand(r)) for id, r in current.items()}
    for move in moves(current, target):
        assert move.source != move.target
        assert set(expand(move.slots)) <= now[move.source], "nobody gives what it does not have"
        now[move.source] -= set(expand(move.slots))
        now.setdefault(move.target, set()).update(expand(move.slots))
    for id, slots_now in now.items():
        assert slots_now <= set(expand(target.get(id, ())))


def test_a_slot_that_seems_to_be_with_two_shards_is_dealt_to_one_and_none_is_left_out() -> None:
    """Shards are looked at one after the other, while slots move: what one has just given may be seen with both."""
    current = {"0001": ((0, 5460),), "0002": ((8192, 13652), (15701, 15701)), "0003": ((5461, 8191), (13653, 16383))}
    for ids in (["0001", "0002", "0003"], ["0003", "0002", "0001"], ["0001", "0002", "0003", "0004"]):
        target = rebalance(current, ids)
        assert union(*target.values()) == ((0, SLOTS - 1),)
        assert sum(map(count, target.values())) == SLOTS


def test_what_is_even_stays():
    for n in (1, 2, 3, 5, 90):
        ids = [f"{i:04}" for i in range(n)]
        assert not moves(even(ids), rebalance(even(ids), ids))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_growing_and_shrinking_ends_even(sizes):
    current = even(["0001"])
    for n in sizes:
        current = rebalance(current, [f"{i + 1:04}" for i in range(n)])
        assert sum(count(r) for r in current.values()) == SLOTS
        assert max(map(count, current.values())) - min(map(count, current.values())) <= 1
