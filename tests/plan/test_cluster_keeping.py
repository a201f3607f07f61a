"""Cluster mode: what only one node holds is not thrown away by what a user wants done meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import gone, silent, step
from tests.plan.test_cluster_plan import ONE, OTHER, OTHERS_REPLICA, TWO, seen, settled, shard

from cachekeep.engines.launch import cluster_node_id, nodes_conf
from cachekeep.model import Cache, Decide, Errand, MoveSlots, View, Wait


def with_node(cache: Cache, name: str, **changes: Any) -> Cache:
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in cache.decided.nodes)
    return replace(cache, decided=replace(cache.decided, nodes=nodes))


def without_members(cache: Cache, *names: str) -> Cache:
    """The user wants these no longer."""
    shards = tuple(replace(w, members=tuple(m for m in w.members if m.name not in names)) for w in cache.wanted.shards)
    return replace(cache, wanted=replace(cache.wanted, shards=tuple(w for w in shards if w.members)))


def leaderless(cache: Cache, view: View) -> tuple[Cache, View]:
    """The first shard's primary is gone, and nobody can be elected: another primary is not known to be stopped."""
    return cache, seen(view, demo_0001_001=gone(), demo_0002_001=silent(cache, OTHER, 0.1))


def test_the_only_holder_does_not_restart_while_nobody_leads() -> None:
    cache, view = leaderless(*settled(2))
    answer = step(with_node(cache, TWO, due="reboot"), view)
    assert isinstance(answer, Wait)
    assert answer.refused
    nodes = plan_until_wait(with_node(cache, TWO, due="reboot"), view).decided.nodes
    assert not any(n.condemned for n in nodes)


def plan_until_wait(cache: Cache, view: View) -> Cache:
    """The cache after all that can be decided without another look."""
    for _ in range(20):
        answer = step(cache, view)
        if not isinstance(answer, Decide):
            return cache
        cache = replace(cache, decided=answer.decided)
    pytest.fail(f"decisions led nowhere: {answer.because}")


def test_the_only_holder_is_not_sent_away_while_nobody_leads() -> None:
    """Wanted or not: first its shard has a leader, then it goes."""
    cache, view = leaderless(*settled(2))
    after = plan_until_wait(without_members(cache, TWO), view)
    assert not any(n.leaving for n in after.decided.nodes)
    leaving = with_node(without_members(cache, TWO), TWO, leaving=True)
    assert isinstance(step(plan_until_wait(leaving, view), view), Wait)


def test_one_that_hangs_may_restart_even_so() -> None:
    cache, view = settled(2)
    view = seen(view, demo_0001_001=gone(), demo_0001_002=silent(cache, TWO, 9.0, process="frozen"))
    after = plan_until_wait(with_node(cache, TWO, due="reboot"), view)
    assert [n.name for n in after.decided.nodes if n.condemned] == [TWO]


def test_two_shards_that_are_refused_are_both_told_once() -> None:
    """Each took the other's place once, for ever: the keeper did nothing else."""
    cache, view = settled(3)
    shards = tuple(replace(x, in_sync=frozenset()) for x in cache.decided.shards)
    cache = replace(cache, decided=replace(cache.decided, shards=shards))
    view = seen(view, demo_0001_001=gone(), demo_0002_001=gone())
    after = plan_until_wait(cache, view)
    refused = (after.decided.refusal or "").splitlines()
    assert [line.split()[0] for line in refused] == [ONE, OTHER]


def test_consent_is_not_kept_for_a_shard_that_has_its_leader() -> None:
    """Or it would be used years later, when nobody remembers."""
    cache, view = settled(3)
    decided = replace(cache.decided, refusal="another shard waits")
    errand = Errand(serial=1, kind="promote-stale", shard="0001")
    cache = replace(cache, decided=decided, wanted=replace(cache.wanted, errands=(errand,)))
    cache = shard(cache, primary=ONE)
    view = seen(view, demo_0002_001=silent(cache, OTHER, 0.1))
    assert not any(x.accept_stale for x in plan_until_wait(cache, view).decided.shards)


def test_a_primary_that_leaves_stays_while_its_shard_has_slots() -> None:
    """First it was not wanted, then its whole shard was not: its slots went with it."""
    cache, view = settled(2)
    cache = without_members(with_node(cache, ONE, leaving=True), ONE, TWO)
    answer = step(cache, view)
    assert "process and files go" not in answer.because
    while isinstance(answer, Decide):
        cache = replace(cache, decided=answer.decided)
        answer = step(cache, view)
    assert any(isinstance(e, MoveSlots) and e.source == ONE for e in answer.stages[0])  # type: ignore[union-attr]


def test_a_new_replica_is_told_of_the_primary_that_is_about_to_leave() -> None:
    """It would follow somebody whom its file does not name."""
    cache, _ = settled(2)
    cache = with_node(cache, OTHER, leaving=True)
    primary, replica = (n for n in cache.decided.nodes if n.shard == "0002")
    text = nodes_conf(cache, replica)
    assert text.count(f"{cluster_node_id(cache, primary)} ") == 2  # its own line, and the line of whom follows it
    assert replica.name == OTHERS_REPLICA
