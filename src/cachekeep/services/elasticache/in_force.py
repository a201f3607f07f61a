"""What is in force, while something else may be wanted: a change waits for its window, or is half done."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from cachekeep.engines.catalogue import family_of
from cachekeep.engines.limits import data_bytes
from cachekeep.engines.parameters import default_groups
from cachekeep.model import Cache, Condition, Member, Node
from cachekeep.model.traits import traits


def node_type(cache: Cache, nodes: Iterable[Node] | None = None) -> str:
    """What runs; while a change is under way the old type, as long as any node has it."""
    return next((n.node_type for n in _of(cache, nodes) if n.node_type != cache.wanted.node_type), cache.wanted.node_type)


def engine(cache: Cache, nodes: Iterable[Node] | None = None) -> tuple[str, str]:
    """Engine and version that run; while a change is under way the old ones, as long as any node has them."""
    asked = (cache.wanted.engine, cache.wanted.version)
    return next((have for n in _of(cache, nodes) if (have := (n.engine, n.version)) != asked), asked)


def parameter_group(cache: Cache, nodes: Iterable[Node] | None = None) -> str:
    """The parameter group that nodes have their values of. One of another family comes with its version, and waits with it only
    where both are the families' default ones."""
    name = cache.wanted.parameter_group
    old = family_of(*engine(cache, nodes))
    if name not in default_groups() or old == family_of(cache.wanted.engine, cache.wanted.version):
        return name
    return f"default.{old}.cluster.on" if name.endswith(".cluster.on") else f"default.{old}"


def members(cache: Cache) -> tuple[Member, ...]:
    """The members that are there and stay until their window at least."""
    wanted = cache.wanted_names()
    waits = "shards" in cache.wanted.deferred
    stay = (n for n in cache.decided.nodes if not n.leaving and (waits or n.member in wanted))
    return tuple(Member(name=n.member, zone=n.zone) for n in stay)


def held_bytes(condition: Condition | None) -> int:
    """What the fullest node was last seen to hold, at least; 0 where nobody has looked."""
    return max((n.holds_bytes or 0 for n in condition.nodes), default=0) if condition is not None else 0


def fits(cache: Cache, name: str, held: int) -> bool:
    """Whether ``held`` bytes have room in another node type. Memcached's are lost anyway when it changes."""
    if not traits(cache.wanted.engine).replicates or name == node_type(cache):
        return True
    return held <= data_bytes(replace(cache.wanted, node_type=name))


def _of(cache: Cache, nodes: Iterable[Node] | None) -> Iterable[Node]:
    return cache.decided.nodes if nodes is None else nodes
