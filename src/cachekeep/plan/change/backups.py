"""Snapshots that nobody asks for one by one: those of each day, in the cache's window, and the last one, before its end."""

from __future__ import annotations

import datetime as dt

from msgspec.structs import replace

from cachekeep.model import Beginning, Decide, Job, Snapshot, Step, Task, Wait
from cachekeep.model.windows import daily
from cachekeep.plan import snapshots
from cachekeep.plan.jobs import with_job
from cachekeep.plan.situation import Situation


def schedule(s: Situation) -> Step | None:
    """One a day [AWS: SnapshotRetentionLimit, SnapshotWindow]: in the window, or after it if nobody could begin in it. One that no
    node can be read for now is waited for; those that were asked for go first."""
    decided, wanted = s.decided, s.cache.wanted
    if decided.available_at is None or wanted.deleted:
        return None
    if not wanted.snapshot_retention_days:
        if decided.backed_up_at is None:
            return None
        return Decide(replace(decided, backed_up_at=None), "no snapshots are taken by themselves any more")
    opened, within = _opened(wanted.snapshot_window, s.now)
    if decided.backed_up_at is None and not within:
        return Decide(replace(decided, backed_up_at=s.now), f"a snapshot is taken each day at {wanted.snapshot_window}")
    if decided.backed_up_at is not None and decided.backed_up_at >= opened:
        return None
    if snapshots.going_on(decided) or s.cache.errands_left:
        return None
    stamp = opened.strftime("%Y-%m-%d-%H-%M")
    name = f"automatic.{s.cache.name}-{stamp}"
    uid = f"{s.cache.uid}-{stamp}/{name}"
    task = Task(kind=snapshots.KIND, arguments={"cache": s.cache.uid, "snapshot": uid, "node": wanted.snapshotting_id})
    aimed = snapshots.aim(s, task)
    if isinstance(aimed, str):
        return Wait(s.policy.rest_seconds, "job", f"{name} is due: {aimed}", refused=True)
    job = Job(
        id=f"automatic-{stamp}",
        work=aimed,
        began_at=s.moment,
        deadline_seconds=snapshots.DEADLINE_SECONDS,
        state=Beginning(),
    )
    record = Snapshot(
        name=name,
        uid=uid,
        source="automated",
        asked_at=s.now,
        cache_uid=s.cache.uid,
        group=s.cache.name if s.cache.kind == "group" else "",
        settings=snapshots.settings_of(s.cache),
        nodes=snapshots.nodes_of(s.cache),
    )
    decided = replace(with_job(s, decided, job), backed_up_at=s.now)
    return Decide(decided, f"{name} is due, and taken", records=(record,))


def _opened(window: str, now: dt.datetime) -> tuple[dt.datetime, bool]:
    """When the window last opened, and whether it is open."""
    start, length = daily(window)
    opened = now.replace(hour=start // 60, minute=start % 60, second=0, microsecond=0)
    if opened > now:
        opened -= dt.timedelta(days=1)
    return opened, now < opened + dt.timedelta(minutes=length)


def keep(s: Situation) -> Step | None:
    """What is deleted with a last snapshot does not go without it [AWS: FinalSnapshotIdentifier]."""
    if (problem := s.cache.kept_from_ending) is None:
        return None
    because = (
        f"{s.cache.name} is to be deleted when its last snapshot is there, which has failed: {problem}. Its nodes go on: delete it "
        "again, with another FinalSnapshotIdentifier or without one"
    )
    return Wait(s.policy.rest_seconds, "job", because, refused=True)
