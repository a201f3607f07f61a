"""Has a recorder run for each shard of each cache that is tagged for it, following whoever leads (decision 61).

The tag ``cachekeep:point-in-time`` says for how long moments can be had: ``7d``, ``36h`` or ``90m``. Recorders are processes of
their own; this worker points them, starts those that are not there, ends those that are not wanted, and removes what is older.
"""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Final, Literal

from cachekeep.backup.recording import DIRECTORY, RecordedShard, ShardRecording, Upstream, recordings
from cachekeep.clock import Clock
from cachekeep.control.observe import Passwords
from cachekeep.engines.users import REPLICA, secret_of
from cachekeep.errors import CachekeepError
from cachekeep.model import Cache, Tags
from cachekeep.plan import Policy
from cachekeep.store.contract import Store

log = logging.getLogger("cachekeep.recorders")

TAG: Final = "cachekeep:point-in-time"
EVERY_SECONDS, PRUNE_SECONDS = 1.0, 60.0
REBASE_SECONDS_MIN, REBASES = 600.0, 8
"""An RDB is taken anew so many times in what is kept, so that what is too old can go by an eighth of it."""
_UNITS: Final = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_KINDS: Final[dict[Literal["group", "cluster"], str]] = {"group": "replicationgroup", "cluster": "cluster"}


def window_seconds(value: str) -> float | None:
    """What a tag's value says; None: nothing that it could mean."""
    found = re.fullmatch(r"([1-9]\d{0,4}) ?([mhd])", value.strip())
    return float(found[1]) * _UNITS[found[2]] if found else None


class Recorders:
    """The worker. Whatever fails is said once and tried again."""

    def __init__(self, store: Store, clock: Clock, *, data_dir: Path, password_of: Passwords, policy: Policy) -> None:
        self._store, self._clock, self._policy = store, clock, policy
        self._data_dir, self._password_of = data_dir, password_of
        self._said: dict[str, str] = {}
        self._windows: dict[Path, float] = {}

    async def run(self) -> None:
        pruned = self._clock.monotonic()
        while True:
            try:
                await self._pass()
                if self._clock.monotonic() - pruned >= PRUNE_SECONDS:
                    pruned = self._clock.monotonic()
                    await self._prune()
            except (CachekeepError, OSError) as error:
                self._say("", f"recorders cannot be looked after: {error}")
            await self._clock.sleep(EVERY_SECONDS)

    def hasten(self) -> None:
        """It lacks nothing."""

    async def _pass(self) -> None:
        async with self._store.reading() as tx:
            tags = {":".join(tags.name.split(":")[-2:]): tags.values for tags in await tx.list(Tags)}
            tagged = {name: values[TAG] for name, values in tags.items() if TAG in values}
            found = [
                await tx.cache(name.partition(":")[2], kind)
                for name in tagged
                for kind, word in _KINDS.items()
                if name.startswith(f"{word}:")
            ]
        wanted: dict[Path, tuple[Cache, str]] = {}
        self._windows.clear()
        for cache in found:
            if cache is None or cache.wanted.deleted:
                continue
            window = window_seconds(tagged[f"{_KINDS[cache.kind]}:{cache.name}"])
            if (why := self._why_not(cache, window)) is not None or window is None:
                self._say(cache.uid, f"{cache.name} is not recorded: {why}")
                continue
            for shard in cache.decided.shards:
                directory = self._data_dir / DIRECTORY / f"{cache.uid}-{shard.id}"
                self._windows[directory] = window
                wanted[directory] = (cache, shard.id)
        for directory, (cache, shard_id) in wanted.items():
            await self._point(ShardRecording(directory), cache, shard_id)
        for recording in await asyncio.to_thread(recordings, self._data_dir):
            if recording.directory not in wanted and recording.on():
                await asyncio.to_thread(recording.stop)
                log.info("%s is not recorded any more; what was recorded stays", recording.about.cache)

    def _why_not(self, cache: Cache, window: float | None) -> str | None:
        if cache.wanted.engine == "memcached":
            return "memcached has nothing that could be recorded"
        if window is None:
            return f"its tag {TAG} must be a time such as 7d, 36h or 90m"
        if self._policy.fence == "starve":
            return "with --fence starve a primary counts on its replicas, and a recorder would be counted as one"
        if cache.decided.transit != "disabled":
            return "its nodes speak TLS, and recorders do not yet"
        return None

    async def _point(self, recording: ShardRecording, cache: Cache, shard_id: str) -> None:
        shard = cache.shard(shard_id)
        primary = cache.node(shard.primary) if shard is not None and shard.primary else None
        if shard is None or primary is None or shard.change is not None:
            return  # it goes on with the node that it follows, until it is known who leads
        about = RecordedShard(cache.name, cache.kind, cache.uid, shard_id, primary.engine, primary.version)
        password = secret_of(REPLICA, self._password_of(cache))
        rebase_seconds = max(self._windows[recording.directory] / REBASES, REBASE_SECONDS_MIN)
        source = Upstream(primary.address, primary.port, REPLICA, password, rebase_seconds)
        await asyncio.to_thread(recording.point, about, source)
        if not await asyncio.to_thread(recording.running):
            log.info("shard %s of %s is recorded", shard_id, cache.name)
            await asyncio.to_thread(recording.start)

    async def _prune(self) -> None:
        for directory, window in list(self._windows.items()):
            since = self._clock.now().timestamp() - window
            await asyncio.to_thread(ShardRecording(directory).prune, int(since * 1e9))

    def _say(self, what: str, problem: str) -> None:
        if self._said.get(what) != problem:
            self._said[what] = problem
            log.warning("%s", problem)
