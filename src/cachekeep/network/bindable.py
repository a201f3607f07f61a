"""Whether the addresses of a pool are this machine's to give."""

from __future__ import annotations

import errno
import socket
from typing import Final

from cachekeep.errors import Unusable
from cachekeep.network.addresses import free

_CHECKED_MAX: Final = 64


def check_pool(pool: str) -> None:
    """Find out now whether the pool can be read and, of its first addresses, that they are this machine's. Raises ``Unusable``.

    No engine could ever bind another's: its cache would be ``creating`` for good.
    """
    for address in free(pool, (), _CHECKED_MAX, seed=""):
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                probe.bind((address, 0))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise Unusable(f"{address} of the address pool {pool} cannot be used: {error.strerror}.") from error
            given = f"ip route add local {pool} dev lo" if "/" in pool else f"ip address add {address} dev lo"
            raise Unusable(
                f"{address} of the address pool {pool} is not an address of this machine, so no node could serve there. "
                f"Choose addresses that it has with --address-pool, or give it these first, such as: {given}"
            ) from error
