"""What is known of leads that are over, part by part."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, gone, group, healthy, heard, later, running, settled, shard, shard_with, silent

from cachekeep.model import Cache, Confirmed, Ended, Moment, Node, Stream, View
from cachekeep.plan import Policy
from cachekeep.plan.lead import evidence
from cachekeep.plan.lead.evidence import Lack
from cachekeep.plan.situation import Situation, with_nodes, with_shard

ONE, TWO, THREE = "demo-001", "demo-002", "demo-003"
STARVE = Policy(fence="starve")


def situation(cache: Cache, view: View, policy: Policy | None = None, moment: Moment = MOMENT) -> Situation:
    return Situation(cache, view, NOW, moment, policy or Policy())


def with_lead(cache: Cache, **changes: Any) -> Cache:
    return replace(cache, decided=with_shard(cache.decided, replace(shard(cache.decided), **changes)))


def node(cache: Cache, name: str) -> Node:
    found = cache.node(name)
    assert found is not None
    return found


def clustered(count: int = 2) -> Cache:
    cache = group(count, cluster_mode="enabled")
    return with_lead(cache, primary_address=None, reader_address=None)


OVER = Ended(primary=ONE, order=1, at=MOMENT, heard=heard((0.2, 1000)), in_sync=frozenset({TWO}))


@pytest.mark.parametrize(
    ("cache", "told", "said", "ended", "led"),
    [
        (group(2), 1, (), (), False),
        (group(2), 2, (), (), True),
        (group(2), None, (), (), True),
        (group(2), 1, ((0.2, 1000),), (), True),  # its predecessor was given up: what it held itself is all that there is
        (group(2), 1, ((0.2, 1000),), (OVER,), False),
        (clustered(), 1, (), (OVER,), True),  # the engines may have elected it
    ],
)
def test_who_may_have_led(cache: Cache, told: int | None, said: Any, ended: tuple[Ended, ...], led: bool) -> None:
    cache = with_lead(cache, primary=TWO, order=2, lead_order=2, ended=ended)
    s = situation(cache, healthy(cache, demo_002=gone(said=heard(*said), lead_order=told)))
    over = evidence.over(s, shard(cache.decided), node(cache, TWO))
    assert [e.primary for e in over] == [e.primary for e in ended] + ([TWO] if led else [])


@pytest.mark.parametrize(("there", "past"), [(gone(lead_order=2), [TWO]), (None, [])], ids=["gone", "there"])
def test_who_was_let_lead_later_counts_when_it_is_gone(there: Any, past: list[str]) -> None:
    cache = with_lead(group(), order=2)
    view = healthy(cache, demo_002=there or running(cache, TWO, lead_order=2))
    assert [e.primary for e in evidence.over(situation(cache, view), shard(cache.decided), None)] == past


@pytest.mark.parametrize(
    ("confirmed", "in_sync"),
    [
        (Confirmed(), frozenset()),  # the first primary of a shard has fed nobody before it says so
        (Confirmed(primary=ONE, order=1, nodes=frozenset({TWO})), {TWO}),
        (Confirmed(primary=ONE, order=0, nodes=frozenset({TWO})), None),
        (Confirmed(primary=TWO, order=1, nodes=frozenset({THREE})), None),
    ],
)
def test_who_was_in_sync_with_a_lead_that_is_over(confirmed: Confirmed, in_sync: Any) -> None:
    cache = with_lead(group(), lead_order=1, order=1, confirmed=confirmed)
    s = situation(cache, healthy(cache, demo_001=gone()))
    assert evidence.end(s, node(cache, ONE), 1).in_sync == in_sync
    assert evidence.end(s, node(cache, ONE), 0).in_sync is None
    assert evidence.end(s, replace(node(cache, ONE), shard="0009"), 1).in_sync is None, "its shard is no more"


@pytest.mark.parametrize(
    ("policy", "changes", "digest", "name", "armed"),
    [
        (STARVE, {"min_replicas": 1}, True, ONE, True),
        (STARVE, {"min_replicas": 0}, True, ONE, False),
        (STARVE, {"min_replicas": 1}, False, ONE, False),
        (STARVE, {"min_replicas": 1}, True, TWO, False),
        (Policy(), {"min_replicas": 1}, True, ONE, False),
    ],
)
def test_who_takes_no_writes_without_replicas(policy: Policy, changes: Any, digest: bool, name: str, armed: bool) -> None:
    """Of it, what was acknowledged after it was last heard is what starving costs."""
    cache = with_lead(group(), **changes)
    view = running(cache, name) if digest else running(cache, name, digests={"settings": "other"})
    at = later(-1)
    view = replace(view, still_since=at)
    s = situation(cache, healthy(cache, **{name.replace("-", "_"): view}), policy)
    assert evidence.armed(s, node(cache, name)) is armed
    assert evidence.end(s, node(cache, name), 1).at == (view.heard[0].asked_at if armed else at)
    unheard = situation(cache, healthy(cache, **{name.replace("-", "_"): replace(view, heard=())}), policy)
    assert evidence.end(unheard, node(cache, name), 1).at == at


A, B = Stream("a", 1000), Stream("b", 1100, "a", 1000)


@pytest.mark.parametrize(
    ("earlier", "said", "held", "lack"),
    [
        (None, A, None, Lack(None, None)),
        (None, A, A, Lack(0.2, 0)),
        (None, A, Stream("a", 900), Lack(None, 100)),
        (None, A, B, Lack(0.2, 0)),
        (None, A, Stream("b", 990, "a", 900), Lack(None, 10)),
        (None, A, Stream("x", 1000), Lack(None, None)),
        (None, B, Stream("a", 1000), Lack(None, 100)),
        (None, B, Stream("c", 1050, "b", 1040), Lack(None, 50)),
        (A, B, Stream("a", 1000), Lack(None, 100)),
        (A, Stream("b", 1000, "a", 1000), Stream("a", 1000), Lack(0.2, 0)),
        (A, Stream("b", 1000, "a", 1000), Stream("a", 990), Lack(None, 10)),
        (A, Stream("b", 1000, "x", 1000), Stream("a", 1000), Lack(None, None)),
        (A, Stream("a", 1010), Stream("a", 1000), Lack(0.2, 0)),  # it went on with what was on its way, and began nothing
    ],
)
def test_what_a_node_lacks_at_most(earlier: Stream | None, said: Stream, held: Stream | None, lack: Lack) -> None:
    cache = group(2)
    ends = () if earlier is None else (replace(OVER, heard=heard((0.1, earlier))),)
    ends = (*ends, replace(OVER, primary=TWO, order=2, heard=heard((0.2, said))))
    found = evidence.lack(situation(cache, healthy(cache)), ends, held)
    assert (found.seconds if found.seconds is None else round(found.seconds, 3), found.bytes) == lack


def test_in_cluster_mode_an_end_in_another_boot_shows_nothing() -> None:
    cache = clustered()
    s = situation(cache, healthy(cache), moment=Moment("another", 1.0))
    assert evidence.lack(s, (OVER,), A).seconds is None


@pytest.mark.parametrize(
    ("cache", "changes", "sure"),
    [
        (group(2), {}, [TWO]),
        (group(2), {"role": "primary"}, [TWO]),
        (clustered(), {}, [TWO]),
        (clustered(), {"role": "primary"}, []),  # it has lost its slots, and has dropped what it held with them
        (group(2), {"answer": None}, []),
        (group(2), {"stream": None}, []),
    ],
)
def test_who_could_lead_now(cache: Cache, changes: dict[str, Any], sure: list[str]) -> None:
    s = situation(cache, healthy(cache, demo_001=gone(), demo_002=running(cache, TWO, **changes)))
    assert [n.name for n in evidence.sure(s, shard(cache.decided), (OVER,))] == sure
    leaving = replace(cache, decided=with_nodes(cache.decided, [replace(node(cache, TWO), leaving=True)]))
    s = situation(leaving, s.view)
    assert evidence.sure(s, shard(leaving.decided), (OVER,)) == []


def test_only_who_has_more_than_the_best_of_those_in_sync_is_as_good() -> None:
    cache = group(4)
    offsets = {TWO: 1000, THREE: 995, "demo-004": 998}
    view = healthy(cache, demo_001=gone(), **{n.replace("-", "_"): running(cache, n, offset=at) for n, at in offsets.items()})
    ends = (replace(OVER, heard=heard((0.2, 990)), in_sync=frozenset({TWO, THREE})),)
    s = situation(cache, view)
    assert {n.name for n in evidence.sure(s, shard(cache.decided), ends)} == {TWO, THREE}


def test_one_that_was_never_in_sync_keeps_the_lead_that_it_was_given_for_having_more() -> None:
    """Whoever it had more than may be gone by the time that it is told."""
    cache = with_lead(group(), confirmed=Confirmed(primary=ONE, order=1, nodes=frozenset({TWO})))
    cache = replace(cache, decided=with_shard(cache.decided, shard_with(shard(cache.decided))))
    view = healthy(cache, demo_001=gone(), demo_002=running(cache, TWO, offset=995))
    led, _ = settled(cache, view)
    assert shard(led.decided).primary == THREE
    after, _ = settled(led, healthy(led, demo_001=silent(led, ONE, 1.0), demo_002=gone()))
    assert (shard(after.decided).primary, after.decided.refusals) == (THREE, ())
