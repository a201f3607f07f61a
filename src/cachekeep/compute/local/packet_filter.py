"""Doors kept by the kernel: one table of nftables for an installation, replaced as a whole (nft(8)).

Packets to a place that has a door are looked at one by one, so that what a change shuts out ends where it is connected already.
Of a user of this machine what counts is who owns the socket. A packet that belongs to no socket any more (a connection that its
process has closed, and whose last data the kernel still delivers) passes, but cannot begin anything. Who is shut out gets a reset,
at once; the other end of such a connection is closed, too (``sockets.turn_out``).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cachekeep.compute.local import sockets
from cachekeep.errors import CachekeepError
from cachekeep.plan.reach.admission import Door

log = logging.getLogger(__name__)

_NFT_SECONDS: Final = 10.0
_OURS: Final = 0
"""The user of our own processes: the control plane, engines, fronts. Whoever is root could take the table away."""


class FilterFailed(CachekeepError):
    """The kernel did not take the table: what it kept before it still keeps."""


def table_of(data_dir: Path) -> str:
    """The name of the table of a data directory's installation: another on this machine has another."""
    return f"cachekeep_{hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]}"


def unable() -> str | None:
    """Why connections cannot be filtered here; None if they can. Blocks."""
    if os.geteuid() != _OURS:
        return "this needs root"
    if shutil.which("nft") is None:
        return "this needs nft (apt install nftables)"
    try:
        _nft("-c", "-f", "-", text=text_of("cachekeep_try", [Door(address="127.0.0.1", port=1, users=frozenset({1}))]))
    except FilterFailed as error:
        return f"the kernel refuses: {error}"
    return None


def remove(table: str) -> None:
    """Let everybody in again. Does nothing where there is no table. Raises ``FilterFailed``; blocks."""
    _nft("-f", "-", text=f"table inet {table}\ndelete table inet {table}\n")


class PacketFilter:
    """The table of one installation."""

    def __init__(self, table: str) -> None:
        self._table = table

    async def keep(self, doors: Sequence[Door]) -> None:
        """These doors and no others from now on, for connections that exist, too. Raises ``FilterFailed``: nothing has changed."""
        if not doors:
            await asyncio.to_thread(remove, self._table)
            return
        await asyncio.to_thread(self._keep, tuple(doors))

    def _keep(self, doors: Sequence[Door]) -> None:
        _nft("-f", "-", text=text_of(self._table, doors))
        try:
            sockets.turn_out({(door.address, door.port): door for door in doors}, ours=_OURS)
        except OSError as error:
            log.warning("connections that are shut out now end with their next packet only: %s", error)

    async def kept(self) -> bool:
        """Whether the table is still there and asked. Raises ``FilterFailed``."""
        return await asyncio.to_thread(self._kept)

    def _kept(self) -> bool:
        try:
            return all("@closed" in _nft("list", "chain", "inet", self._table, chain) for chain in ("out", "in"))
        except FilterFailed:
            _nft("list", "tables")
            return False


def _nft(*arguments: str, text: str = "") -> str:
    """What nft says. Raises ``FilterFailed``."""
    try:
        done = subprocess.run(
            ["nft", *arguments], input=text, capture_output=True, text=True, timeout=_NFT_SECONDS, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FilterFailed(f"nft: {error}") from error
    if done.returncode != 0:
        raise FilterFailed(f"nft: {done.stderr.strip()[:500] or f'exit status {done.returncode}'}")
    return done.stdout


# ------------------------------------------------------------------ the table


def text_of(table: str, doors: Iterable[Door]) -> str:
    """What takes the place of a table, at once (nft -f is one transaction)."""
    by_family = {4: [d for d in doors if ":" not in d.address], 6: [d for d in doors if ":" in d.address]}
    sets, out, chains, in_ = [], [], [], []
    for version, mine in by_family.items():
        ip, kind = ("ip", "ipv4_addr") if version == 4 else ("ip6", "ipv6_addr")
        place = f"{ip} daddr . tcp dport"
        sets += [
            _set(f"closed{version}", f"type {kind} . inet_service", (_at(d) for d in mine)),
            _set(f"all{version}", f"type {kind} . inet_service", (_at(d) for d in mine if d.everybody)),
            _set(f"users{version}", f"typeof meta skuid . {place}", (f"{u} . {_at(d)}" for d in mine for u in sorted(d.users))),
            _set(f"barred{version}", f"typeof meta skuid . {place}", (f"{u} . {_at(d)}" for d in mine for u in sorted(d.barred))),
            _set(
                f"networks{version}",
                f"type {kind} . inet_service . {kind}; flags interval",
                (f"{_at(d)} . {network}" for d in mine for network in d.networks),
            ),
        ]
        out.append(f'oifname "lo" {place} @closed{version} jump local{version}')
        in_.append(f'iifname != "lo" {place} @closed{version} {place} . {ip} saddr != @networks{version} reject with tcp reset')
        local = [
            f"meta skuid {_OURS} accept",
            "tcp flags & rst == rst accept",  # the end of a connection reaches the other side
            f"meta skuid . {place} @barred{version} reject with tcp reset",
            f"{place} @all{version} accept",
            f"meta skuid . {place} @users{version} accept",
            "tcp flags & (syn | ack) == syn reject with tcp reset",
            "meta skuid 0-4294967294 reject with tcp reset",  # of any socket that still has an owner
        ]
        chains.append(_chain(f"local{version}", local))
    hook = "type filter hook {} priority filter; policy accept;"
    chains += [_chain("out", [hook.format("output"), *out]), _chain("in", [hook.format("input"), *in_])]
    return f"table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{''.join([*sets, *chains])}}}\n"


def _at(door: Door) -> str:
    return f"{door.address} . {door.port}"


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    return f"  set {name} {{ {kind}; {f'elements = {{ {listed} }};' if listed else ''} }}\n"


def _chain(name: str, rules: Iterable[str]) -> str:
    return f"  chain {name} {{\n" + "".join(f"    {rule}\n" for rule in rules) + "  }\n"
