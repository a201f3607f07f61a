"""No effect is lost at the door: every type is carried by hands, and every one of a link by the real link and by its twin."""

from __future__ import annotations

from typing import get_args

import pytest
from tests.engines.servers import Orders

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import ApplyParts, CarriedBy, LinkEffect, PublishDiscovery, named_by
from cachekeep.compute.link import EngineLink
from cachekeep.model import Apply, Begin, Cancel, Discover, Effect, Erase, Point, Start, Stop, Witness
from cachekeep.sim.cluster import ClusterWorld
from cachekeep.sim.cluster_doors import SimClusteredLink

OTHERS = {Start, Stop, Erase, Point, Begin, Cancel}
"""For the driver, for fronts, for the door of jobs."""
COMPOSED = {Apply: ApplyParts, Discover: PublishDiscovery}
"""Effects that take more than the link, and what they come down to for it."""


def test_each_effect_of_the_model_is_for_the_link_or_for_another_door() -> None:
    assert {COMPOSED.get(e, e) for e in get_args(Effect)} - OTHERS == set(get_args(LinkEffect))


def _sides() -> dict[str, CarriedBy]:
    real = EngineLink(Orders(), SystemClock())
    twin = SimClusteredLink(ClusterWorld(seed=0))
    return {"real": real.carried_by, "twin": twin.carried_by}


@pytest.mark.parametrize("side", ["real", "twin"])
def test_a_link_carries_every_effect_of_a_link(side: str) -> None:
    carried_by = _sides()[side]
    assert set(carried_by) == set(get_args(LinkEffect))
    assert len({carry.__qualname__ for carry in carried_by.values()}) == len(carried_by), "each by a method of its own"


NODES = {"node": "a", "primary": "b", "giver": "c", "taker": "d", "source": "e", "target": "f", "others": ("g", "h")}


@pytest.mark.parametrize("kind", get_args(LinkEffect), ids=lambda kind: kind.__name__)
def test_a_link_is_told_where_every_node_is_that_an_effect_names(kind: type) -> None:
    fields = kind.__struct_fields__  # type: ignore[attr-defined]
    effect = kind(**{name: NODES.get(name, 0) for name in fields})
    meant = {n for name in fields if name in NODES for n in NODES[name]} - ({"b"} if kind is Witness else set())
    assert set(named_by(effect)) == meant
