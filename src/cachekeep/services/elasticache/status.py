"""Statuses are derived here and nowhere stored.

Without a live condition of the very version that is shown, nothing is called ``available``: it is ``creating``, ``deleting`` or
``modifying`` until somebody has looked.
"""

from __future__ import annotations

from cachekeep.model import Cache, Condition, Node
from cachekeep.model.condition import REBOOTING
from cachekeep.plan.status import unseen
from cachekeep.services.core.hold import current


def cache_status(cache: Cache, condition: Condition | None) -> str:
    """Of a stand-alone cluster, or of a group as a whole."""
    if cache.wanted.deleted:
        return "deleting"
    if _to_reboot(cache):
        return REBOOTING
    if any(e.kind == "snapshot" for e in cache.errands_left):
        return "snapshotting"
    if seen := current(cache, condition):
        return seen.status
    return unseen(cache)


def group_status(cache: Cache, condition: Condition | None) -> str:
    """Of a replication group; the API has no word for its rebooting."""
    status = cache_status(cache, condition)
    return "modifying" if status == REBOOTING else status


def cluster_status(cache: Cache, condition: Condition | None, cluster_id: str) -> str:
    """Of a stand-alone cluster or of one member of a group."""
    if cache.kind == "cluster" or cache.wanted.deleted:
        return cache_status(cache, condition)
    node = cache.member(cluster_id)
    if cluster_id not in cache.wanted_names() or (node and node.leaving):
        return "deleting"
    if cluster_id in _to_reboot(cache):
        return REBOOTING
    seen = current(cache, condition)
    of_node = next((n.status for n in seen.nodes if node and n.name == node.name), None) if seen else None
    if of_node is not None:
        return REBOOTING if of_node == "rebooting" else of_node
    return "modifying" if node and cache.decided.available_at else "creating"


def _to_reboot(cache: Cache) -> frozenset[str]:
    """Nodes whose reboot has been asked for and is not done."""
    return frozenset(node for e in cache.errands_left if e.kind == "reboot" for node in e.nodes)


def node_status(cache: Cache, condition: Condition | None, node: Node) -> str:
    """Of one node of a cluster."""
    if cache.wanted.deleted or node.leaving:
        return "deleting"
    if node.member in _to_reboot(cache):
        return "rebooting"
    seen = current(cache, condition)
    of_node = next((n.status for n in seen.nodes if n.name == node.name), None) if seen else None
    return of_node or unseen(cache)
