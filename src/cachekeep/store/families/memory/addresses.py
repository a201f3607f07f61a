"""Addresses: whose each is, and which were given up not long ago. Only stores ask for them."""

from __future__ import annotations

from cachekeep.model import Moment, elapsed
from cachekeep.store.contract import AddressTaken
from cachekeep.store.families.memory.part import MemoryPart, owned


class MemoryAddresses(MemoryPart):
    """What stores ask of addresses."""

    def own_addresses(self, uid: str, own: set[str]) -> None:
        """Make the address index say what the cache uses. Raises ``AddressTaken``."""
        had = {address for address, of in self.state.addresses.items() if of == uid}
        resting = self.resting()
        others = {a for a, (of, _) in resting.items() if of != uid}
        if taken := [a for a in own - had if a in self.state.addresses or a in others]:
            raise AddressTaken(min(taken))
        self.state.addresses = owned(self.state.addresses, uid, own)
        self.state.released = resting | dict.fromkeys(had - own, (uid, self._clock.moment()))

    def resting(self) -> dict[str, tuple[str, Moment]]:
        """Addresses that were given up not long ago, or nobody knows when."""
        now = self._clock.moment()
        since = {address: elapsed(at, now) for address, (_, at) in self.state.released.items()}
        return {a: v for a, v in self.state.released.items() if (age := since[a]) is None or age < self._linger_seconds}
