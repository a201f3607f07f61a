"""What is true of everything that is decided, whatever happens. Asked before each decision is saved and of each that is loaded, so
what cannot be is neither written nor acted on: it is told as a problem of that cache, and its nodes go on as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

from cachekeep.errors import CachekeepError
from cachekeep.model import Beginning, Decided, Errand, Node, Preparing, Resting, Retiring, Running, Shard, Task
from cachekeep.plan.slots.ranges import SLOTS, Ranges, common, union


class Unsound(CachekeepError):
    """A decision that contradicts itself."""


def demand(name: str, decided: Decided) -> None:
    """Raises ``Unsound`` if what is decided for the cache of this name cannot be."""
    if broken := check(decided):
        raise Unsound(f"what is decided for {name} (decision {decided.serial}) cannot be: {'; '.join(broken)}. Nothing rests on it")


def check(decided: Decided) -> tuple[str, ...]:
    """What cannot be in it, in sentences."""
    return (
        *_mode(decided),
        *_names(decided),
        *_addresses(decided),
        *_nodes(decided),
        *_shards(decided),
        *_slots(decided),
        *_jobs(decided),
    )


def _mode(decided: Decided) -> Iterator[str]:
    clustered = decided.mode == "enabled"
    if isinstance(decided.switch, Preparing) and clustered:
        yield "cluster mode is enabled, and is yet to be"
    if isinstance(decided.switch, Retiring) and not clustered:
        yield "nodes have been replaced by others in cluster mode, which is not enabled"
    for shard in decided.shards:
        if clustered and shard.primary_address:
            yield f"shard {shard.id} is in cluster mode, and has an endpoint of its own"


def _names(decided: Decided) -> Iterator[str]:
    for what, names in (
        ("node", (n.name for n in decided.everyone)),
        ("shard", (x.id for x in decided.shards)),
        ("front", (f.name for f in decided.fronts)),
        ("job", (j.id for j in decided.jobs)),
    ):
        for name in _twice(names):
            yield f"{what} {name} is there twice"


def _addresses(decided: Decided) -> Iterator[str]:
    endpoints = {a for x in decided.shards for a in (x.primary_address, x.reader_address) if a}
    endpoints |= {decided.configuration_address} if decided.configuration_address else set()
    for address in _twice(n.address for n in decided.everyone):
        yield f"two nodes have {address}"
    for node in decided.everyone:
        if not node.address:
            yield f"{node.name} has no address"
        elif node.address in endpoints:
            yield f"{node.name} and an endpoint have {node.address}"


def _nodes(decided: Decided) -> Iterator[str]:
    shards = {x.id for x in decided.shards}
    for node in decided.everyone:
        if node.incarnation < 1:
            yield f"{node.name} has incarnation {node.incarnation}"
        if node.shard not in shards:
            yield f"{node.name} belongs to shard {node.shard}, which is not there"
    for node in decided.successors:
        if not node.in_place_of:
            yield f"{node.name} succeeds nobody"


def _shards(decided: Decided) -> Iterator[str]:
    of: dict[str, Node] = {n.name: n for n in decided.nodes}
    for shard in decided.shards:
        yield from (f"shard {shard.id}: {what}" for what in _shard(shard))
        for name in (shard.primary, shard.moving_to):
            if name in of and of[name].shard != shard.id:
                yield f"shard {shard.id}: {name} is a node of shard {of[name].shard}"


def _shard(shard: Shard) -> Iterator[str]:
    if shard.lead_order > shard.order:
        yield f"its primary leads by order {shard.lead_order}, and the last one was {shard.order}"
    for end in shard.ended:
        if end.order > shard.order:
            yield f"{end.primary} led by order {end.order}, and the last one was {shard.order}"
    if shard.moving_to is not None and shard.moving_to == shard.primary:
        yield f"{shard.primary} hands over to itself"


def _slots(decided: Decided) -> Iterator[str]:
    every: Ranges = ()
    for shard in decided.shards:
        for ranges in (shard.slots, shard.owned):
            if any(not 0 <= a <= b < SLOTS for a, b in ranges) or any(b + 1 >= a for (_, b), (a, _) in pairwise(ranges)):
                yield f"shard {shard.id}: {ranges} are no slots in order"
        if both := common(every, shard.slots):
            yield f"slots {both} are to belong to shard {shard.id} and to another"
        every = union(every, shard.slots)
    if every and every != ((0, SLOTS - 1),):
        yield f"not all slots are to belong to somebody, only {every}"


def _jobs(decided: Decided) -> Iterator[str]:
    for job in decided.jobs:
        match job.work, job.state:
            case Errand(), Beginning() | Resting():
                yield f"{job.id} is an errand, and is to be begun at a door"
            case Task(), (Beginning(attempt) | Running(attempt) | Resting(attempt)) if attempt < 1:
                yield f"{job.id} has attempt {attempt}"


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
