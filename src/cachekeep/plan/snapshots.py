"""Snapshots: which nodes they are read from, and what their end leaves.

What reads is a task (``control/snapshots.py``), which bears being begun again; what it leaves in the vault is whole or not there.

A shard is read from a replica that is in sync, so that its primary forks for nobody; from the primary where there is none, or where
its latest word is what is asked for. Nobody forks without room for it: a fork's pages may all be there twice, and a process that
reaches its limit is killed with all that it holds.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cachekeep.model import (
    Beginning,
    Cache,
    Decided,
    Done,
    Errand,
    Event,
    Failed,
    Job,
    Node,
    Record,
    Resting,
    Shard,
    SnapshotEnd,
    SnapshotNode,
    SnapshotSettings,
    Task,
)
from cachekeep.plan.situation import Situation

KIND: Final = "snapshot"
DEADLINE_SECONDS: Final = 6 * 3600.0
"""For reading all of it, waiting for room included."""
READ: Final = "read:"
"""Before the shard, in the arguments of its task, whose value is the node to read."""
_FORK: Final = 2
"""Pages that may be there while it goes on, against those before it."""


def settings_of(cache: Cache) -> SnapshotSettings:
    """What a snapshot tells of a cache that runs: what is in force, while something else may be wanted."""
    wanted = cache.wanted
    runs = cache.decided.nodes[0]
    return SnapshotSettings(
        engine=runs.engine,
        version=runs.version,
        node_type=runs.node_type,
        port=wanted.port,
        clustered=cache.clustered,
        parameter_group=wanted.parameter_group,
        subnet_group=wanted.subnet_group,
        description=wanted.description,
        maintenance_window=wanted.maintenance_window,
        snapshot_window=wanted.snapshot_window,
        retention_days=wanted.snapshot_retention_days,
        auto_minor_version_upgrade=wanted.auto_minor_version_upgrade,
        automatic_failover=wanted.automatic_failover,
        zone=runs.zone,
        created_at=cache.created_at,
    )


def nodes_of(cache: Cache, cluster_id: str = "") -> tuple[SnapshotNode, ...]:
    """A node for each shard that there are data of: the one named, else its primary."""
    found = []
    for shard in cache.decided.shards:
        if cache.clustered and not shard.slots:
            continue
        here = [n for n in cache.decided.nodes if n.shard == shard.id and not n.leaving]
        node = next((n for n in here if n.member == cluster_id), None) or next((n for n in here if n.name == shard.primary), None)
        if node is not None:
            slots = shard.slots if cache.clustered else ()
            found.append(
                SnapshotNode(
                    shard=shard.id, cluster_id=node.member, slots=slots, replicas=len(here) - 1, created_at=node.created_at
                )
            )
    return tuple(found)


def job(s: Situation, errand: Errand) -> Job:
    """The job of an errand that asks for a snapshot."""
    task = Task(kind=KIND, arguments={"cache": s.cache.uid, "snapshot": errand.snapshot, "node": ",".join(errand.nodes)})
    aimed = aim(s, task)
    state = Resting(1, s.moment, aimed) if isinstance(aimed, str) else Beginning(1)
    work = task if isinstance(aimed, str) else aimed
    return Job(id=errand.id, work=work, began_at=s.moment, deadline_seconds=DEADLINE_SECONDS, state=state)


def aim(s: Situation, task: Task, *, again: bool = False) -> Task | str:
    """The task with a node to read for each shard (``read:0001`` → ``demo-002``); or why that cannot be now. ``again``: an attempt
    before may have brought it to its end unheard."""
    arguments = {name: value for name, value in task.arguments.items() if not name.startswith(READ)}
    arguments |= {"again": "yes"} if again else {}
    for shard in s.decided.shards:
        if s.clustered and not shard.slots:
            continue
        node = _source(s, shard, arguments["node"].split(","))
        if isinstance(node, str):
            return node
        arguments[READ + shard.id] = node.name
    return replace(task, arguments=arguments)


def read_from(job: Job) -> frozenset[str]:
    """The nodes that a job that goes on reads, or is about to."""
    if not isinstance(job.work, Task) or job.work.kind != KIND or job.ended:
        return frozenset()
    return frozenset(sources(job.work).values())


def sources(task: Task) -> dict[str, str]:
    """Shard → the node that it is to be read from."""
    return {name.removeprefix(READ): node for name, node in task.arguments.items() if name.startswith(READ)}


def going_on(decided: Decided) -> bool:
    """Whether one is being taken."""
    return any(isinstance(j.work, Task) and j.work.kind == KIND and not j.ended for j in decided.jobs)


def _source(s: Situation, shard: Shard, asked: list[str]) -> Node | str:
    primary = s.primary(shard)
    if primary is None or not s.leads(primary):
        return f"shard {shard.id} has no primary that answers"
    if shard.change is not None:
        return f"who leads shard {shard.id} is about to change"
    able = sorted(s.able(shard), key=lambda n: (n.member not in asked, n.name))
    candidates = [primary, *able] if primary.member in asked else [*able, primary]
    candidates = [n for n in candidates if not n.due]
    if not candidates:
        return f"all nodes of shard {shard.id} are about to restart"
    lacking = [(n, _lacks(s, n)) for n in candidates]
    fit = next((n for n, problem in lacking if problem is None), None)
    return fit or lacking[-1][1] or ""


def _lacks(s: Situation, node: Node) -> str | None:
    """Why a node must not fork now; None: it may."""
    seen = s.seen(node).limits
    if seen is None or seen.held.memory_bytes is None or seen.resident_bytes is None:
        return None
    if seen.resident_bytes * _FORK <= seen.held.memory_bytes:
        return None
    return (
        f"{node.name} keeps {seen.resident_bytes >> 20} MiB in memory and may use {seen.held.memory_bytes >> 20} MiB: a fork "
        "may need as much again, and could end it. Nothing is read until there is room"
    )


def left(s: Situation, task: Task, state: Done | Failed) -> tuple[tuple[Event, ...], tuple[Record, ...]]:
    """What the end of a snapshot is told by, and what it leaves [AWS, "Amazon SNS events": SnapshotComplete, SnapshotFailed]."""
    uid = task.arguments["snapshot"]
    name = uid.rpartition("/")[2]
    kind = "replication group" if s.cache.kind == "group" else "cache cluster"
    if isinstance(state, Done):
        return (s.tell(f"Snapshot succeeded for snapshot with ID '{name}' of {kind} with ID '{s.cache.name}'", group=True),), ()
    told = f"Snapshot failed for snapshot with ID '{name}' of {kind} with ID '{s.cache.name}': {state.problem}"
    return (s.tell(told, group=True),), (SnapshotEnd(name=uid, at=s.now, problem=state.problem),)
