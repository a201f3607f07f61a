"""Take a guard away and some seed must notice: otherwise the guard, or the simulation, is for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from cachekeep.compute.contract import ApplyParts, ProcessSpec, Targets
from cachekeep.model import Act, Decide, Ended, Moment, Node, Promote, Shard, Step
from cachekeep.plan import planner, situation
from cachekeep.plan.change import errands, rollout
from cachekeep.plan.lead import evidence, judge, promote, starve
from cachekeep.plan.nodes import limits, members
from cachekeep.plan.situation import Situation, with_shard
from cachekeep.sim import run as simulation
from cachekeep.sim.doors import SimDriver, SimLink
from cachekeep.sim.faults import CLASSIC
from cachekeep.sim.run import simulate
from cachekeep.sim.scenario import Scenario, Violation
from cachekeep.sim.timeless import START, SimClock

LONELY: dict[str, Any] = {
    "nodes": 2,
    "flaky": 0.0,
    "harm_seconds": 20.0,
    "vocabulary": frozenset({"tear", "kill-primary", "reboot-all"}),
}
"""A replica that loses its link, then the primary; and users who have nodes restarted."""
RESIZED: dict[str, Any] = {"vocabulary": frozenset({"other-node-type"})}
"""Planned moves, changes of the node type among them, and orders that fail."""
Break = Callable[[pytest.MonkeyPatch], None]
TRIED = 150
"""Seeds, from the first that is worth it for the guard."""


def _any_successor(patch: pytest.MonkeyPatch) -> None:
    """The best in-sync replica is whichever comes first, not the one that has most; nor is that found out before it leads."""
    patch.setattr(evidence, "ahead", lambda s, nodes, than: [])
    patch.setattr(
        promote, "foremost", lambda s, candidates, lost: min(candidates, key=lambda n: s.seen(n).offset or 0, default=None)
    )


def _in_sync_has_no_age(patch: pytest.MonkeyPatch) -> None:
    """Who was in sync when somebody last looked may be promoted, whenever that was, and whoever has led since."""

    def proven(s: Situation, ends: tuple[Ended, ...], node: Node) -> bool:
        shard = s.cache.shard(node.shard)
        return shard is not None and node.name in shard.confirmed.nodes | {shard.primary}

    patch.setattr(evidence, "proven", proven)


def _decided_on_is_as_good_as_led(patch: pytest.MonkeyPatch) -> None:
    """Who was promoted and died unseen counts as one that has never led: what its predecessor left is all that there is."""
    patch.setattr(evidence, "_past", lambda s, shard, lost: iter([] if shard.ended or lost is None else [(lost, shard.lead_order)]))


def _heard_when_it_was_read(patch: pytest.MonkeyPatch) -> None:
    """An answer that a control plane finds in its socket, when it goes on after a halt, is news."""
    real = SimLink._hear
    patch.setattr(SimLink, "_hear", lambda self, engine, held, asked_at: real(self, engine, held, self._world.moment()))


def _no_fence(patch: pytest.MonkeyPatch) -> None:
    """A hung primary is succeeded without being stopped first."""

    def hung(s: Situation, shard: Shard, primary: Node) -> Step | None:
        if judge.why_hung(s, shard, primary) is None:
            return None
        return promote.succeed(s, shard, primary, promote.take_over)

    patch.setattr(judge, "hung", hung)


def _silence_is_death(patch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is gone, in-sync set or not."""

    def succeed(s: Situation, shard: Shard, lost: Node, appoint: promote.Appoint) -> Step | None:
        alive = [n for n in s.replicas(shard) if s.alive(n)]
        return appoint(s, shard, lost, alive[0], "the first that answers") if alive else None

    patch.setattr(promote, "succeed", succeed)


def _empty_leads(patch: pytest.MonkeyPatch) -> None:
    """The old primary comes back and leads, empty as it is."""

    def first(s: Situation, shard: Shard, primary: Node) -> Step | None:
        if not s.alive(primary):
            return None
        return Act(((Promote(primary.name, shard.order, promote.addresses(s, shard, primary)),),), "it leads, as ever")

    patch.setattr(promote, "_first_promotion", first)
    patch.setattr(promote, "succeed", lambda s, shard, lost, appoint: None)


def _no_order_numbers(patch: pytest.MonkeyPatch) -> None:
    """Late orders are obeyed."""
    patch.setattr(SimDriver, "admit", lambda self, key, order, **_: True)


def _orders_reach_the_next_process(patch: pytest.MonkeyPatch) -> None:
    """A new process obeys what was meant for the one before it."""
    real = SimDriver.start

    async def start(self: SimDriver, spec: ProcessSpec) -> None:
        await real(self, replace(spec, order=0))

    patch.setattr(SimDriver, "start", start)


def _move_without_catching_up(patch: pytest.MonkeyPatch) -> None:
    """A planned move is a promotion: nobody waits until the taker has everything."""

    def move(s: Situation, shard: Shard, to: Node, because: str) -> Decide:
        led = replace(shard, primary=to.name, order=shard.order + 1, lead_order=shard.order + 1)
        return Decide(with_shard(s.decided, led), because)

    for place in (promote, rollout, errands):
        patch.setattr(place, "move", move)


def _restart_beside(patch: pytest.MonkeyPatch) -> None:
    """Nodes that are condemned need not be confirmed stopped."""
    patch.setattr(planner, "RULES", tuple(r for r in planner.RULES if r.rule is not members.stop))


def _ends_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What is known of a lead that is over is not kept when its node is started again."""
    real = evidence.over
    patch.setattr(evidence, "over", lambda s, shard, lost: real(s, replace(shard, ended=()), lost))


def _starved_at_once(patch: pytest.MonkeyPatch) -> None:
    """Nobody waits until the primary that is cut off must have noticed."""
    patch.setattr(starve, "STARVING_SECONDS", 0.0)


def _fed_by_others(patch: pytest.MonkeyPatch) -> None:
    """Replicas that cannot be asked are taken to have left."""
    patch.setattr(starve, "_feeding", lambda s, shard: [])


def _starved_unarmed(patch: pytest.MonkeyPatch) -> None:
    """The primary takes writes without replicas, and is starved all the same."""

    async def apply_parts(self: SimLink, effect: ApplyParts, at: Targets) -> None: ...

    patch.setattr(SimLink, "apply_parts", apply_parts)


def _fill_before_there_is_room(patch: pytest.MonkeyPatch) -> None:
    """Engines are told to hold more, and then their limits are raised."""
    patch.setattr(limits, "_has_room", lambda s, node: True)
    later = (limits.configure, limits.widen)
    patch.setattr(planner, "RULES", tuple(sorted(planner.RULES, key=lambda r: later.index(r.rule) if r.rule in later else -1)))


def _fill_what_a_replica_has_no_room_for(patch: pytest.MonkeyPatch) -> None:
    """Whoever has room itself is told to hold more."""
    patch.setattr(limits, "_fed_together", lambda s, node: [node])


def _lower_at_once(patch: pytest.MonkeyPatch) -> None:
    """Limits are lowered, and then engines are told to hold less."""
    patch.setattr(limits, "_why_not_yet", lambda s, node, less, seen: None)
    patch.setattr(planner, "RULES", tuple(sorted(planner.RULES, key=lambda r: r.rule is limits.configure)))


def _an_excuse_is_silence(patch: pytest.MonkeyPatch) -> None:
    """Who answers with an error has not answered."""
    real = judge.why_hung

    def why_hung(s: Situation, shard: Shard, primary: Node) -> str | None:
        v = s.seen(primary)
        deaf = v.excuse is not None and v.waiting_seconds >= s.policy.silence_seconds
        return "says nothing of use" if deaf else real(s, shard, primary)

    patch.setattr(judge, "why_hung", why_hung)


def _scripts_go_on(patch: pytest.MonkeyPatch) -> None:
    """Nobody ends a script that does not end by itself."""
    patch.setattr(planner, "RULES", tuple(r for r in planner.RULES if r.rule is not judge.interrupt))


def _by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """Durations are measured by a clock that is set."""
    patch.setattr(SimClock, "moment", lambda self: Moment("boot", (self.now() - START).total_seconds()))


def _moments_of_any_boot(patch: pytest.MonkeyPatch) -> None:
    """What was heard before the host went down counts as heard just now: the clock has begun anew."""

    def whichever(since: Moment | None, now: Moment) -> float | None:
        return None if since is None or not since.boot else max(0.0, now.seconds - since.seconds)

    for place in (evidence, situation):
        patch.setattr(place, "elapsed", whichever)


BOOTED: dict[str, Any] = {
    "fence": "starve",
    "automatic_failover": False,
    "moves": False,
    "two_keepers": False,
    "flaky": 0.0,
    "harm_seconds": 25.0,
    "vocabulary": frozenset({"boot", "stalls-unseen"}),
}
"""Hosts of their own outlive that of the keepers, and a primary that takes writes without its replicas."""


CLOCKS = frozenset({"cut-primary", "set-clock"})


def _let_the_only_holder_go(patch: pytest.MonkeyPatch) -> None:
    """What a user wants of a node is done whatever it holds."""
    patch.setattr(Situation, "needed", lambda self, node: False)


BREAKS: tuple[tuple[Break, dict[str, Any], int], ...] = (
    (_any_successor, {}, 0),
    (_in_sync_has_no_age, {"vocabulary": CLASSIC | {"stalls-unseen"}}, 0),
    (_decided_on_is_as_good_as_led, {"vocabulary": CLASSIC | {"fatal-promotions"}}, 0),
    (_heard_when_it_was_read, {"vocabulary": CLASSIC | {"stalls-while-halted"}}, 0),
    (_no_fence, {}, 0),
    (_silence_is_death, {}, 0),
    (_empty_leads, {}, 0),
    (_no_order_numbers, {"flaky": 0.6, "harm_seconds": 30.0}, 0),
    (_orders_reach_the_next_process, {"flaky": 0.6, "harm_seconds": 30.0}, 3040),
    (_move_without_catching_up, {"faults": False}, 0),
    (_restart_beside, {}, 0),
    (_ends_are_forgotten, {"vocabulary": CLASSIC | {"fatal-promotions", "keepers-away"}}, 17),
    (_starved_at_once, {"fence": "starve"}, 0),
    (_fed_by_others, {"fence": "starve"}, 0),
    (_starved_unarmed, {"fence": "starve"}, 0),
    (_by_the_wall_clock, {"fence": "starve", "moves": False, "vocabulary": CLOCKS}, 40),
    (_moments_of_any_boot, BOOTED, 0),
    (_fill_before_there_is_room, RESIZED, 0),
    (_fill_what_a_replica_has_no_room_for, RESIZED, 0),
    (_lower_at_once, RESIZED, 0),
    (_an_excuse_is_silence, {"vocabulary": CLASSIC | {"pause", "script-that-writes", "crowd"}}, 0),
    (_let_the_only_holder_go, LONELY, 15),
    (_scripts_go_on, {"vocabulary": CLASSIC | {"endless-script"}}, 0),
)


@pytest.mark.parametrize(("remove", "scenario", "first"), BREAKS, ids=[b.__name__.strip("_") for b, *_ in BREAKS])
def test_a_missing_guard_is_noticed(remove: Break, scenario: dict[str, Any], first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(monkeypatch)
    monkeypatch.setattr(simulation, "CALM_SECONDS", 25.0)
    for seed in range(first, first + TRIED):
        try:
            simulate(Scenario(seed, **scenario))
        except Violation:
            return
    pytest.fail(f"{TRIED} seeds and none noticed")
