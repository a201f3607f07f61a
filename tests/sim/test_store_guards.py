"""Take a guard of the journal away and some seed must notice, by a promise of safety that broke."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import pytest

from cachekeep.model import Cache, Decided
from cachekeep.sim import run as simulation
from cachekeep.sim.faults import AILS, CLASSIC
from cachekeep.sim.run import simulate
from cachekeep.sim.scenario import LivenessViolation, SafetyViolation, Scenario
from cachekeep.sim.store import SimDisk, WatchedStore
from cachekeep.store import journal as journal_module
from cachekeep.store import memory
from cachekeep.store.contract import Lease
from cachekeep.store.journaled import JournaledStore
from cachekeep.store.memory import MemoryTransaction
from cachekeep.store.serial import overlaid

TRIED = 30
ALONE: dict[str, Any] = {"two_keepers": False, "vocabulary": CLASSIC | {AILS}}
BROUGHT_BACK = ALONE | {"vocabulary": CLASSIC | {AILS, "old-journal"}}
BESIDE = ALONE | {"two_keepers": True}


def _acted_upon_before_it_is_synced(patch: pytest.MonkeyPatch) -> None:
    """What is in the journal reaches the disk a second later, or never."""
    under_way: list[asyncio.TimerHandle] = []

    async def write(self: SimDisk, offset: int, data: bytes) -> None:
        def land() -> None:
            self.content[offset : offset + len(data)] = data

        under_way.append(asyncio.get_running_loop().call_later(1.0, land))

    def kill(self: SimDisk) -> None:
        for write in under_way:
            write.cancel()

    patch.setattr(SimDisk, "write", write)
    patch.setattr(SimDisk, "kill", kill)


def _kept_in_memory(patch: pytest.MonkeyPatch) -> None:
    """A control plane that starts looks at no journal."""
    real = SimDisk.open

    def open(self: SimDisk, size_bytes: int) -> bytes:
        return bytes(len(real(self, size_bytes)))

    patch.setattr(SimDisk, "open", open)


def _beside_another_control_plane(patch: pytest.MonkeyPatch) -> None:
    """The journal is used although another keeper, who cannot read it, may decide next."""
    real = WatchedStore.__init__

    def init(self: WatchedStore, *parts: Any, **given: Any) -> None:
        real(self, *parts, **given | {"alone": True})

    patch.setattr(WatchedStore, "__init__", init)


def _merged_over_what_is_later(patch: pytest.MonkeyPatch) -> None:
    """What a journal holds is written, whatever has been decided since under the same lease."""
    patch.setattr(memory, "merge", _whatever)


def _merged_over_a_newer_epoch(patch: pytest.MonkeyPatch) -> None:
    """What a journal holds is written, whoever has decided since."""
    _merged_over_what_is_later(patch)
    patch.setattr(MemoryTransaction, "held", lambda self, uid, lease: self.state.caches[uid])


def _whatever(row: Cache, decided: Decided) -> Cache:
    return overlaid(row, simulation.replace(decided, serial=row.decided.serial + 1))


def _dropped_with_what_came_after(patch: pytest.MonkeyPatch) -> None:
    """When the store has an entry, whatever is kept of its cache goes."""

    def apply(entries: dict[str, Any], change: Any) -> None:
        if isinstance(change, journal_module._Kept):
            entries[change.entry.lease.uid] = change.entry
        else:
            entries.pop(change.uid, None)

    patch.setattr(journal_module, "_apply", apply)


def _claimed_before_it_is_merged(patch: pytest.MonkeyPatch) -> None:
    """The next control plane has leases of its own while the journal still holds what was decided under the former ones."""

    async def claim(
        self: JournaledStore, holder: str, *, ttl_seconds: float, uids: Collection[str] | None = None, limit: int = 100
    ) -> list[Lease]:
        self._holder = (holder, ttl_seconds)
        return await self._store.claim(holder, ttl_seconds=ttl_seconds, uids=uids, limit=limit)

    patch.setattr(JournaledStore, "claim", claim)


BREAKS: tuple[tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any], int], ...] = (
    (_acted_upon_before_it_is_synced, ALONE, 8),
    (_kept_in_memory, ALONE, 0),
    (_beside_another_control_plane, BESIDE, 20),
    (_merged_over_what_is_later, BROUGHT_BACK, 0),
    (_merged_over_a_newer_epoch, BROUGHT_BACK, 0),
    (_dropped_with_what_came_after, ALONE, 4),
    (_claimed_before_it_is_merged, ALONE, 6),
)


@pytest.mark.parametrize(("remove", "scenario", "first"), BREAKS, ids=[b.__name__.strip("_") for b, _, _ in BREAKS])
def test_a_missing_guard_is_noticed(
    remove: Callable[[pytest.MonkeyPatch], None], scenario: dict[str, Any], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    monkeypatch.setattr(simulation, "CALM_SECONDS", 25.0)
    for seed in range(first, first + TRIED):
        try:
            simulate(Scenario(seed, harm_seconds=24.0, **scenario))
        except SafetyViolation as noticed:
            print(noticed)
            return
        except LivenessViolation:
            continue
    pytest.fail(f"{TRIED} seeds and none noticed")
