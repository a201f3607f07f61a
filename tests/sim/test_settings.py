"""An engine that takes a setting and does not heed it: that is a visible failure with a pause, and no loop."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cachekeep.compute.contract import ApplyParts, Targets
from cachekeep.sim.doors import SimLink
from cachekeep.sim.run import UID, Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.timeless import run


def test_a_setting_that_is_not_heeded_is_told_and_not_tried_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    async def apply_parts(self: SimLink, effect: ApplyParts, at: Targets) -> None:
        tried.append(effect.node)

    monkeypatch.setattr(SimLink, "apply_parts", apply_parts)
    story = Run(Scenario(1, nodes=1, faults=False, moves=False, two_keepers=False, flaky=0.0))

    async def tell() -> str:
        await story.store.open()
        await story._create()
        story.keepers = [story._keeper("keeper")]
        await story._until(story._healthy, "creation")
        await story._change(lambda wanted: replace(wanted, node_type="cache.t3.small"))
        await story.clock.sleep(30.0)
        async with story.store.reading() as tx:
            told = await tx.condition(UID)
        story.keepers[0].cancel()
        assert told is not None
        assert told.refused
        return told.because

    because = run(tell())
    assert "demo-001 cannot be given its settings: maxmemory is 402653184 after it was set to 1103269724" in because
    assert 2 <= len(tried) <= 15
