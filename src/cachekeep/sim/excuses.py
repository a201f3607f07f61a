"""What a decision may lose, for want of anybody who could have kept it. Beside this, ``World.note_losses`` counts what dies with
its only holder."""

from __future__ import annotations

from collections.abc import Iterable

from cachekeep.compute.contract import Key
from cachekeep.model import Cache
from cachekeep.sim.world import World


def lossable(world: World, cache: Cache, keeper: str) -> set[int]:
    """Acknowledged writes that nobody who could lead now, or be waited for, holds."""
    leaving = {(cache.uid, n.name) for n in cache.decided.nodes if n.leaving}
    unheard = {key for key in world.processes if frozenset((keeper, key)) in world.severed}
    return _out_of_reach(world) | _last_moments(world, leaving | unheard)


def _out_of_reach(world: World) -> set[int]:
    """Somebody is to lead now, and the keepers may have been away since the last one was lost: what only nodes hold that were
    cut off or frozen meanwhile cannot be waited for."""
    living, there = _living(world), _there(world)
    return {w for w in _held(world, living - there) - _held(world, there) if world.fresh(w)}


def _last_moments(world: World, unable: set[Key]) -> set[int]:
    """Nor can the last moments that only such nodes hold as cannot be promoted, though they are fed: those that leave, whose
    processes are being ended and their files erased by the user's word; and those whose network to the keeper that decides is
    severed, so that it neither hears what they have nor could tell them to lead. What was on its way to the others is lost with
    the primary."""
    there = _there(world)
    return {w for w in _held(world, there & unable) - _held(world, there - unable) if world.latest(w)}


def _living(world: World) -> set[Key]:
    return {key for key in world.decided() if (e := world.processes.get(key)) is not None and e.alive}


def _there(world: World) -> set[Key]:
    return {key for key in _living(world) if world.processes[key].answers and key not in world.cut}


def _held(world: World, keys: Iterable[Key]) -> set[int]:
    return {w for key in keys for w in world.processes[key].writes}
