"""Limits before what fills them: the order in which limits and settings of running processes are moved."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import NOW, group, healthy, memcached, running, step

from cachekeep.engines.config import bounds
from cachekeep.engines.limits import front_limits, limits
from cachekeep.engines.runtime import runtime
from cachekeep.model import (
    Act,
    Apply,
    Cache,
    Decide,
    Effect,
    Failure,
    FrontView,
    Limits,
    LimitsSeen,
    Node,
    NodeView,
    Part,
    Silence,
    Step,
    View,
    Wait,
)
from cachekeep.model.limits import lowered, raised


def stages(step: Step) -> tuple[tuple[Effect, ...], ...]:
    assert isinstance(step, Act)
    return step.stages


MOST = Limits(memory_bytes=1 << 40, cpus=64.0, open_files=1 << 20)
MIB = 1 << 20


def of_type(cache: Cache, node_type: str, **wanted: Any) -> Cache:
    """Decided and wanted to be of that type, all of it."""
    nodes = tuple(replace(n, node_type=node_type) for n in cache.decided.nodes)
    return replace(cache, wanted=replace(cache.wanted, node_type=node_type, **wanted), decided=replace(cache.decided, nodes=nodes))


def held(cache: Cache, name: str, **changes: Any) -> LimitsSeen:
    """What is decided for a node is in force, but for changes."""
    node = cache.node(name)
    assert node is not None
    return LimitsSeen(held=replace(limits(cache, node), **changes), most=MOST, resident_bytes=100 * MIB)


def as_it_was(before: Cache, name: str, **changes: Any) -> NodeView:
    """A node that runs with what was decided before."""
    node = before.node(name)
    assert node is not None
    view = replace(running(before, name), limits=held(before, name), settings=bounds(before, node, None), used_bytes=MIB, clients=5)
    return replace(view, **changes)


def views(before: Cache, after: Cache | None = None, **changes: NodeView) -> View:
    """All nodes as they were, but for changes."""
    seen = {n.name.replace("-", "_"): as_it_was(before, n.name) for n in before.decided.nodes}
    return healthy(after or before, **(seen | changes))


SMALL, LARGE = group(node_type="cache.t3.micro"), of_type(group(), "cache.t3.small")


def test_in_place_nothing_is_to_be_done() -> None:
    answer = step(SMALL, views(SMALL))
    assert isinstance(answer, Wait)
    assert answer.because == "demo is as it should be"


def test_upwards_the_limits_go_first() -> None:
    answer = step(LARGE, views(SMALL, LARGE))
    wanted = limits(LARGE, LARGE.decided.nodes[0])
    assert answer == Act(
        (
            tuple(
                Apply(n.name, limits=Limits(memory_bytes=wanted.memory_bytes, open_files=wanted.open_files))
                for n in LARGE.decided.nodes
            ),
        ),
        "demo-001, demo-002 and demo-003 may use more than before",
    )
    widened = {n.name.replace("-", "_"): as_it_was(SMALL, n.name, limits=held(LARGE, n.name)) for n in LARGE.decided.nodes}
    assert step(LARGE, healthy(LARGE, **widened)) == Act(
        ((Apply("demo-002", ("settings",)), Apply("demo-003", ("settings",))), (Apply("demo-001", ("settings",)),)),
        "demo-001, demo-002 and demo-003 get changed settings",
    )


def test_nobody_fills_more_while_one_of_the_shard_cannot_be_given_the_room() -> None:
    """A replica holds whatever its primary does; where its limit cannot be raised, the primary is told nothing."""
    widened = {n.name.replace("-", "_"): as_it_was(SMALL, n.name, limits=held(LARGE, n.name)) for n in LARGE.decided.nodes}
    view = healthy(LARGE, **(widened | {"demo_002": as_it_was(SMALL, "demo-002")}))
    wanted = limits(LARGE, LARGE.decided.nodes[0])
    more = Apply("demo-002", limits=Limits(memory_bytes=wanted.memory_bytes, open_files=wanted.open_files))
    assert step(LARGE, view) == Act(((more,),), "demo-002 may use more than before")
    failing = replace(view, failures=(Failure(effect=more, problem="demo-002: read-only", again_seconds=1.0, since_seconds=2.0),))
    said = "demo-002 cannot be held to its limits: read-only. It is tried again every few seconds"
    told = step(LARGE, failing)
    assert isinstance(told, Decide)
    assert [event.message for event in told.events] == [said]
    answer = step(replace(LARGE, decided=told.decided), failing)
    assert isinstance(answer, Wait)
    assert (answer.refused, answer.because) == (True, said)


def test_downwards_the_engine_goes_first() -> None:
    assert step(SMALL, views(LARGE, SMALL)) == Act(
        ((Apply("demo-002", ("settings",)), Apply("demo-003", ("settings",))), (Apply("demo-001", ("settings",)),)),
        "demo-001, demo-002 and demo-003 get changed settings",
    )
    told = {n.name.replace("-", "_"): as_it_was(SMALL, n.name, limits=held(LARGE, n.name)) for n in SMALL.decided.nodes}
    answer = step(SMALL, healthy(SMALL, **told))
    assert isinstance(answer, Act)
    assert answer.because == "demo-001, demo-002 and demo-003 may use less than before"


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"used_bytes": 500 * MIB}, "it holds 500 MiB of data, more than the 384 MiB that there is room for"),
        ({"used_bytes": None}, "it has not said how much it holds"),
        ({"resident": 1900 * MIB}, "1900 MiB of memory are in use, too much for a limit of 1854 MiB"),
        ({"clients": 30_000}, "30000 clients are connected, too many for 20130 open files"),
        ({"answer": Silence(0.1)}, "demo-002 does not answer"),
        ({"settings": {"maxmemory": "1103269724"}}, None),
    ],
)
def test_a_limit_that_cannot_be_lowered_yet_stays_and_says_why(changes: dict[str, Any], because: str | None) -> None:
    told = {n.name.replace("-", "_"): as_it_was(SMALL, n.name) for n in SMALL.decided.nodes}
    above = held(LARGE, "demo-002")
    if resident := changes.pop("resident", None):
        above = replace(above, resident_bytes=resident)
    told["demo_002"] = as_it_was(SMALL, "demo-002", limits=above, **changes)
    answer = step(SMALL, healthy(SMALL, **told))
    if because is None:  # it has not heeded what it was told: it is told again first
        assert answer == Act(((Apply("demo-002", ("settings",)),),), "demo-002 gets changed settings")
    else:
        assert isinstance(answer, Wait)
        assert (answer.refused, answer.because) == (True, f"demo-002 keeps its limits: {because}")


def test_a_replicas_limit_waits_for_its_primary_to_use_less() -> None:
    told = {n.name.replace("-", "_"): as_it_was(SMALL, n.name) for n in SMALL.decided.nodes}
    told["demo_002"] = as_it_was(SMALL, "demo-002", limits=held(LARGE, "demo-002"))
    told["demo_001"] = as_it_was(LARGE, "demo-001", limits=held(SMALL, "demo-001"), answer=Silence(0.1))
    answer = step(SMALL, healthy(SMALL, **told))
    assert isinstance(answer, Wait)
    assert "demo-002 keeps its limits: demo-001 does not answer" in answer.because


@pytest.mark.parametrize("resource", Limits.__struct_fields__)
def test_what_somebody_changed_is_put_right(resource: str) -> None:
    """One rule for every resource, in both directions."""
    decided = getattr(limits(SMALL, SMALL.decided.nodes[0]), resource)
    for factor, words in ((2, "less"), (0.5, "more")):
        view = as_it_was(SMALL, "demo-003", limits=held(SMALL, "demo-003", **{resource: type(decided)(decided * factor)}))
        assert step(SMALL, views(SMALL, demo_003=view)) == Act(
            ((Apply("demo-003", limits=Limits(**{resource: decided})),),), f"demo-003 may use {words} than before"
        )


def test_what_the_engine_was_told_by_somebody_else_is_put_right() -> None:
    for name in ("maxmemory", "maxclients", "client-output-buffer-limit", "maxmemory-clients", "repl-backlog-size"):
        settings = as_it_was(SMALL, "demo-003").settings | {name: "1"}
        answer = step(SMALL, views(SMALL, demo_003=as_it_was(SMALL, "demo-003", settings=settings)))
        assert answer == Act(((Apply("demo-003", ("settings",)),),), "demo-003 gets changed settings"), name


def test_fewer_clients_where_fewer_files_may_be_opened_are_no_reason_to_try_for_ever() -> None:
    few = LimitsSeen(held=held(SMALL, "demo-003", open_files=5000).held, most=replace(MOST, open_files=5000), resident_bytes=0)
    settings = as_it_was(SMALL, "demo-003").settings | {"maxclients": str(5000 - 128)}
    answer = step(SMALL, views(SMALL, demo_003=as_it_was(SMALL, "demo-003", limits=few, settings=settings)))
    assert isinstance(answer, Wait)
    assert answer.because == "demo is as it should be"


def test_what_cannot_be_limited_here_is_left_alone() -> None:
    cannot = LimitsSeen(held=held(LARGE, "demo-001", memory_bytes=1, cpus=0.1).held, most=Limits(), resident_bytes=0)
    assert isinstance(step(LARGE, views(LARGE, demo_001=as_it_was(LARGE, "demo-001", limits=cannot))), Wait)


def test_a_front_is_held_to_its_limits_too() -> None:
    front = next(f for f in SMALL.decided.fronts if f.name == "readers")
    seen = views(SMALL)
    few = LimitsSeen(held=Limits(memory_bytes=1, cpus=1.0, open_files=100), most=MOST)
    fronts = {"readers": replace(seen.fronts["readers"], limits=few)}
    assert step(SMALL, replace(seen, fronts=fronts)) == Act(
        ((Apply("readers", limits=front_limits(front)),),), "readers may use more than before"
    )
    assert isinstance(fronts["readers"], FrontView)


def test_data_that_do_not_fit_keep_the_node_type() -> None:
    cache = replace(LARGE, wanted=replace(LARGE.wanted, node_type="cache.t3.micro"))
    full = as_it_was(LARGE, "demo-002", used_bytes=900 * MIB)
    answer = step(cache, views(LARGE, cache, demo_002=full))
    assert isinstance(answer, Wait)
    assert (answer.refused, answer.because) == (
        True,
        "the node type stays cache.t3.small: demo-002 holds 900 MiB, and cache.t3.micro has room for 384 MiB of data",
    )
    assert isinstance(step(cache, views(LARGE, cache)), Decide)


def test_parameters_that_change_what_is_needed_move_the_limit_first() -> None:
    for name, value in (("reserved-memory-percent", "0"), ("repl-backlog-size", str(300 * MIB))):
        cache = replace(SMALL, wanted=replace(SMALL.wanted, parameters={name: value}))
        answer = step(cache, views(SMALL, cache))
        assert isinstance(answer, Act), name
        assert {type(e) for e in answer.stages[0]} == {Apply}, name


def test_memcached_restarts_before_its_limit_is_lowered() -> None:
    cache = memcached(1)
    node = Node(
        name="mc.0001", shard="0001", zone="a", address="127.77.0.50", port=11211, engine="memcached", version="1.6.18",
        node_type="cache.t3.micro", announced=True,
    )  # fmt: skip
    cache = replace(cache, decided=replace(cache.decided, nodes=(node,)))
    larger = of_type(cache, "cache.t3.small")
    old = NodeView(
        process="running", incarnation=1, answer="complete", limits=held(larger, "mc.0001"),
        digests=runtime(cache, node).digests | {"boot": runtime(larger, larger.decided.nodes[0]).digests["boot"]},
    )  # fmt: skip
    from tests.plan.builders import MOMENT

    from cachekeep.plan.nodes.limits import narrow
    from cachekeep.plan.situation import Policy, Situation

    waiting = narrow(Situation(cache, View(nodes={"mc.0001": old}), NOW, MOMENT, Policy()))
    assert isinstance(waiting, Wait)
    assert waiting.because == "mc.0001 keeps its limits: it has not restarted yet"
    restarted = replace(old, digests=runtime(cache, node).digests)
    assert isinstance(narrow(Situation(cache, View(nodes={"mc.0001": restarted}), NOW, MOMENT, Policy())), Act)


def test_limits_are_compared_resource_by_resource() -> None:
    decided = Limits(memory_bytes=100, cpus=4.0, open_files=50)
    seen = LimitsSeen(
        held=Limits(memory_bytes=80, cpus=2.0, open_files=60), most=Limits(memory_bytes=1000, cpus=2.0, open_files=None)
    )
    assert raised(decided, seen) == Limits(memory_bytes=100)
    assert lowered(decided, seen) is None
    assert lowered(decided, replace(seen, most=MOST)) == Limits(open_files=50)


def told(cache: Cache, **digests: dict[str, str]) -> View:
    """All is well, but for what these nodes were last told."""
    seen: dict[str, Any] = {}
    for name, changed in digests.items():
        node = cache.node(name.replace("_", "-"))
        assert node is not None
        seen[name] = running(cache, node.name, digests=runtime(cache, node).digests | changed)
    return healthy(cache, **seen)


@pytest.mark.parametrize(
    ("astray", "parts", "because"),
    [
        ({"settings": "x"}, ("settings",), "demo-002 gets changed settings"),
        ({"acl": "x"}, ("acl",), "demo-002 gets changed users"),
        ({"login": "x"}, ("login",), "demo-002 gets another login for replication"),
        ({"settings": "x", "acl": "x"}, ("acl", "settings"), "demo-002 gets changed users and changed settings"),
    ],
)
def test_what_differs_is_applied_and_nothing_else(astray: dict[str, str], parts: tuple[Part, ...], because: str) -> None:
    cache = group(3)
    assert step(cache, told(cache, demo_002=astray)) == Act(((Apply("demo-002", parts),),), because)


def test_a_part_that_only_a_restart_changes_is_not_applied() -> None:
    cache = group(3)
    assert isinstance(step(cache, told(cache, demo_002={"boot": "x"})), Wait)


def test_what_nobody_knows_is_not_applied() -> None:
    cache = group(3)
    assert isinstance(step(cache, healthy(cache, demo_002=running(cache, "demo-002", digests=None))), Wait)


def test_nobody_comes_to_a_primary_by_what_some_node_does_not_know() -> None:
    """Whoever leads next knows it too."""
    cache = group(3)
    first, then = {"login": "x", "acl": "x"}, {"login": "x"}
    every = dict.fromkeys(("demo_001", "demo_002", "demo_003"), first)
    assert stages(step(cache, told(cache, **every))) == (
        (Apply("demo-002", ("acl",)), Apply("demo-003", ("acl",))),
        (Apply("demo-001", ("acl",)),),
    )
    view = told(cache, **every | {"demo_001": then})
    assert stages(step(cache, view)) == ((Apply("demo-002", ("acl",)), Apply("demo-003", ("acl",))),)
    mute = replace(view, nodes=view.nodes | {"demo-003": replace(view.node("demo-003"), answer=Silence(1.0))})
    assert stages(step(cache, mute)) == ((Apply("demo-002", ("acl",)),),)
    view = told(cache, **dict.fromkeys(every, then))
    assert stages(step(cache, view)) == (
        (Apply("demo-002", ("login",)), Apply("demo-003", ("login",))),
        (Apply("demo-001", ("login",)),),
    )
