"""Cuts between addresses of this machine, by rules in an nftables table of their own.

Each node has an address to itself and replicates from it, so a cut node, zone or line is a set of addresses. A cut is silent, as a
dead switch is: packets vanish when they arrive, no connection is reset. Needs root. Rules outlive the process that made them; the
next ``open`` or ``clear`` with the same tag removes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection

from cachekeep.errors import OrderFailed, Unusable

_TABLE = """
table ip {table} {{
  set cut {{ type ipv4_addr; }}
  set lines {{ type ipv4_addr . ipv4_addr; }}
  chain arrivals {{
    type filter hook input priority 0
    ip saddr . ip daddr @lines drop
    ip saddr @cut ip daddr @cut accept
    ip saddr @cut drop
    ip daddr @cut drop
  }}
}}
"""


def unusable() -> str | None:
    """Why this machine cannot be cut; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    return None if shutil.which("nft") else "needs nft (apt install nftables)"


class Cuts:
    """One table of cuts; ``tag`` (letters and digits) tells it from those of others. All calls take some milliseconds and raise
    ``OrderFailed`` with the words of ``nft``."""

    def __init__(self, tag: str) -> None:
        self._table = f"cachekeep_{tag}"

    def open(self) -> None:
        """Make the table anew, with nothing cut. Raises ``Unusable`` without root or nft."""
        if (why := unusable()) is not None:
            raise Unusable(f"Cutting traffic {why}.")
        self._order(f"add table ip {self._table}\ndelete table ip {self._table}\n" + _TABLE.format(table=self._table))

    def clear(self) -> None:
        """Remove the table and with it every cut."""
        self._order(f"add table ip {self._table}\ndelete table ip {self._table}\n")

    def cut(self, addresses: Collection[str]) -> None:
        """Let nothing pass between one of these addresses and any other. Adds to what is cut; among themselves they speak on."""
        self._order(f"add element ip {self._table} cut {{ {', '.join(addresses)} }}\n")

    def heal(self, addresses: Collection[str]) -> None:
        """End the cut of these addresses. Harmless if they are not cut."""
        listed = ", ".join(addresses)
        self._order(f"add element ip {self._table} cut {{ {listed} }}\ndelete element ip {self._table} cut {{ {listed} }}\n")

    def cut_line(self, one: str, other: str) -> None:
        """Let nothing pass between two addresses; both speak on with everybody else."""
        self._order(f"add element ip {self._table} lines {{ {one} . {other}, {other} . {one} }}\n")

    def heal_line(self, one: str, other: str) -> None:
        """End the cut of a line."""
        pair = f"{{ {one} . {other}, {other} . {one} }}"
        self._order(f"add element ip {self._table} lines {pair}\ndelete element ip {self._table} lines {pair}\n")

    def _order(self, orders: str) -> None:
        done = subprocess.run(("nft", "-f", "-"), input=orders, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OrderFailed(f"nft: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'failed'}")
