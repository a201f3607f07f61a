"""Which addresses of a pool are free. Pure arithmetic: nothing is probed, nothing is bound."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Collection, Iterator

from cachekeep.errors import Unusable


def free(pool: str, used: Collection[str], count: int, seed: str) -> tuple[str, ...]:
    """Up to ``count`` addresses of ``pool`` that are not in ``used``; fewer when there are no more. The same for the same
    arguments.

    ``pool`` is a network (``127.77.0.0/16``) or addresses with commas between (``10.0.0.5,10.0.0.6``). Of an IPv4 network,
    addresses that end in .0 or .255 are left out: some clients and switches take them for broadcasts. ``seed`` (a cache's uid) says
    where to begin, so that two who look at the same time seldom choose the same. Raises ``Unusable`` if ``pool`` can't be read.
    """
    size, nth = _pool(pool)
    taken = frozenset(used)
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") % size

    def candidates() -> Iterator[str]:
        for step in range(size):
            if (address := nth((start + step) % size)) is not None and address not in taken:
                yield address

    found = candidates()
    return tuple(address for _, address in zip(range(count), found, strict=False))


class Pool:
    """``compute.contract.Places`` where all addresses are known beforehand. ``pool`` is ``free``'s."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    async def free(self, uid: str, count: int, *, taken: Collection[str]) -> tuple[str, ...]:
        return free(self._pool, taken, count, seed=uid)


def _pool(pool: str) -> tuple[int, Callable[[int], str | None]]:
    try:
        if "/" not in pool:
            listed = [str(ipaddress.ip_address(part.strip())) for part in pool.split(",")]
            return len(listed), lambda n: listed[n]
        network = ipaddress.ip_network(pool.strip())
    except ValueError as error:
        raise Unusable(f"address pool {pool!r} is neither a network nor a list of addresses: {error}") from None

    def nth(n: int) -> str | None:
        address = network[n]
        return None if address.version == 4 and network.prefixlen < 31 and int(address) & 0xFF in (0, 0xFF) else str(address)

    return network.num_addresses, nth
