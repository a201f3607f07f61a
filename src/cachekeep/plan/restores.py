"""A new cache that starts with a snapshot's data: they are fetched to where its nodes are, then each shard's first primary starts
with its part. It loads that before it answers, so nobody is served less than all of it; replicas are fed as always.

Nobody has written anything before the cache is first available, so until then a primary that ends starts with the same data again.
"""

from __future__ import annotations

from typing import Final

from cachekeep.model import Beginning, Cache, Decide, Done, Failed, Job, Node, Step, Task, Wait
from cachekeep.plan.jobs import with_job
from cachekeep.plan.situation import Situation

KIND: Final = "restore"
ID: Final = "restore"
"""Of its job: a cache is restored once."""
DEADLINE_SECONDS: Final = 6 * 3600.0
LOADS_MAX: Final = 3
"""So often a process is started with the data, and no more: what it does not load then it never will."""


def going_on(cache: Cache) -> bool:
    """Whether it is still to become what it starts with."""
    return cache.wanted.restore is not None and cache.decided.available_at is None


def kept_name(uid: str, shard: str) -> str:
    """The file from which a shard's first primary starts, as the driver knows it."""
    return f"{uid}.{shard}.rdb"


def starts_from(cache: Cache, node: Node) -> str | None:
    """The file that a node's process loads before it answers; None: it starts empty."""
    restore, shard = cache.wanted.restore, cache.shard(node.shard)
    if restore is None or not going_on(cache) or shard is None or shard.primary != node.name or shard.id not in restore.objects:
        return None
    return kept_name(cache.uid, shard.id)


def held_back(s: Situation) -> frozenset[str]:
    """First primaries whose data are not there yet."""
    if not going_on(s.cache):
        return frozenset()
    job = s.decided.job(ID)
    if job is not None and isinstance(job.state, Done):
        return frozenset({lost.name}) if (lost := spoilt(s)) is not None else frozenset()
    return frozenset(n.name for n in s.decided.nodes if starts_from(s.cache, n) is not None)


def spoilt(s: Situation) -> Node | None:
    """A first primary whose process has ended again and again with what it was given: its engine cannot load that."""
    tried = (n for n in s.decided.nodes if n.incarnation >= LOADS_MAX and starts_from(s.cache, n) is not None)
    return next((n for n in tried if s.ended(n)), None)


def fetch(s: Situation) -> Step | None:
    """The data are fetched once there are nodes to be."""
    restore = s.cache.wanted.restore
    if restore is None or not going_on(s.cache) or not s.decided.nodes:
        return None
    job = s.decided.job(ID)
    if job is None:
        task = Task(kind=KIND, arguments={"cache": s.cache.uid, "holding": restore.holding, **restore.objects})
        job = Job(id=ID, work=task, began_at=s.moment, deadline_seconds=DEADLINE_SECONDS, state=Beginning())
        return Decide(with_job(s, s.decided, job), f"the data of {restore.name} are fetched")
    lost = spoilt(s)
    if lost is None and not isinstance(job.state, Failed):
        return None
    problem = job.state.problem if isinstance(job.state, Failed) else f"{lost.name} does not load it" if lost else ""
    if lost is not None and (said := s.seen(lost).problem):
        problem += f" ({said})"
    because = (
        f"{s.cache.name} cannot be restored from {restore.name}: {problem}. Nothing of it serves, and what it was to start with is "
        "as it was: delete the cache, and create it anew when that is mended"
    )
    return Wait(s.policy.rest_seconds, "job", because, about=(ID,), refused=True)


def failed(s: Situation) -> bool:
    """Whether nothing will come of it."""
    job = s.decided.job(ID)
    return going_on(s.cache) and ((job is not None and isinstance(job.state, Failed)) or spoilt(s) is not None)
