"""Cluster mode compatible: a front for cluster clients comes and goes beside nodes that go on as they were."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, NOW, decided, gone, group, healthy, step

from cachekeep.engines.runtime import runtime
from cachekeep.model import Act, Cache, Decide, Erase, FrontView, Start, View, Wait
from cachekeep.plan import Policy
from cachekeep.plan.nodes.members import addresses_needed
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import condition

ON = {"cluster_mode": "compatible", "parameter_group": "default.valkey8.cluster.on", "parameters": {"cluster-enabled": "yes"}}


def asked(cache: Cache, mode: str) -> Cache:
    return replace(cache, wanted=replace(cache.wanted, cluster_mode=mode))


def switched(count: int = 3) -> Cache:
    """A compatible group in which everything was decided."""
    cache = asked(group(count), "compatible")
    return decided(cache, replace(healthy(cache), free_addresses=ADDRESSES[-5:]))


def seen(cache: Cache, front: FrontView | None, **changes: object) -> View:
    """All as it should be, but for the front."""
    view = healthy(cache, **changes)  # type: ignore[arg-type]
    return replace(view, fronts={n: v for n, v in (view.fronts | {"configuration": front}).items() if v is not None})


RUNNING = FrontView(process="running", incarnation=1, targets=(), version=0)


def status(cache: Cache, view: View) -> str:
    s = Situation(cache, view, NOW, MOMENT, Policy())
    return condition(s, Wait(1.0, "calm", "")).status


def test_the_front_gets_an_address_and_nodes_are_left_alone() -> None:
    before = group(3)
    cache = switched()
    front = next(f for f in cache.decided.fronts if f.name == "configuration")
    assert (front.kind, front.address) == ("compatible", cache.decided.configuration_address)
    assert cache.decided.configuration_address == ADDRESSES[-5]
    assert (cache.decided.nodes, cache.decided.shards) == (before.decided.nodes, before.decided.shards)
    answer = step(cache, seen(cache, FrontView(process="absent")))
    assert answer == Act(((Start("configuration"),),), "configuration has no process yet")


def test_one_more_address_is_asked_for_once() -> None:
    assert addresses_needed(group(3)) == 0
    assert addresses_needed(asked(group(3), "compatible")) == 1
    assert addresses_needed(switched()) == 0
    answer = step(asked(group(3), "compatible"), healthy(group(3)))
    assert isinstance(answer, Wait)
    assert answer.because == (
        "1 more addresses are needed than the address pool has free (one that is given up is not used again for 35 s): "
        "give it a larger --address-pool"
    )


def test_no_setting_of_an_engine_changes() -> None:
    before = group(3)
    after = replace(before, wanted=replace(before.wanted, **ON))
    for node in before.decided.nodes:
        assert runtime(before, node).digests == runtime(after, node).digests


def test_it_is_modifying_until_the_front_answers_and_available_then() -> None:
    cache = switched()
    assert cache.cluster_mode == "compatible"
    assert status(asked(group(3), "compatible"), healthy(group(3))) == "modifying"
    for front in (None, FrontView(process="absent"), FrontView(process="running", incarnation=1, targets=None)):
        assert status(cache, seen(cache, front)) == "modifying"
    assert status(cache, seen(cache, RUNNING)) == "available"
    assert step(cache, seen(cache, RUNNING)) == Wait(30.0, "calm", "demo is as it should be")


@pytest.mark.parametrize("process", ["running", "frozen"])
def test_a_front_that_does_not_answer_is_looked_at_again_soon(process: Any) -> None:
    """Nothing wakes a keeper when it does at last; the group would be modifying until the next look."""
    cache = switched()
    answer = step(cache, seen(cache, FrontView(process=process, incarnation=1, targets=None)))
    assert answer == Wait(0.05, "answer", "configuration does not answer yet", about=("configuration",))


def test_a_front_that_ended_is_started_again() -> None:
    cache = switched()
    answer = step(cache, seen(cache, FrontView(process="exited", incarnation=1)))
    assert isinstance(answer, Decide)
    assert answer.because == "configuration ended and is started again"


def test_a_failover_does_not_wait_for_the_front() -> None:
    cache = switched()
    answer = step(cache, seen(cache, FrontView(process="exited", incarnation=1), demo_001=gone()))
    assert isinstance(answer, Decide)
    assert answer.because.startswith("demo-001 is gone: demo-002")


def test_back_to_disabled_the_front_goes_and_its_address_with_it() -> None:
    assert status(asked(switched(), "disabled"), seen(switched(), RUNNING)) == "modifying"
    cache = decided(asked(switched(), "disabled"), seen(switched(), RUNNING))
    assert cache.cluster_mode == "disabled"
    assert status(cache, seen(cache, RUNNING)) == "modifying"
    answer = step(cache, seen(cache, RUNNING))
    assert answer == Act(((Erase("configuration"),),), "configuration is not needed any more")
    cache = decided(cache, seen(cache, FrontView(process="absent")))
    assert cache.decided.configuration_address is None
    assert [f.name for f in cache.decided.fronts] == ["readers"]
    assert status(cache, healthy(cache)) == "available"


def test_back_and_forth_before_it_has_gone_keeps_the_address() -> None:
    cache = decided(asked(switched(), "disabled"), seen(switched(), RUNNING))
    again = decided(asked(cache, "compatible"), seen(cache, FrontView(process="absent")))
    assert again.decided.configuration_address == switched().decided.configuration_address
    assert step(again, seen(again, FrontView(process="absent"))) == Act(
        ((Start("configuration"),),), "configuration has no process yet"
    )
