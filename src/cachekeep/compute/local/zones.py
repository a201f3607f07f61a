"""Zones as networks that can be cut: each zone a network namespace, all of them on one bridge in a namespace of its own.

    control plane ── veth ──┐
    zone a (namespace) ─────┤ bridge (namespace "hub")
    zone b (namespace) ─────┘

For trying failover on one machine. Needs root. An address belongs to one zone at a time and moves at once: its new owner announces
it, so nobody goes on sending to the old one. A cut is silent, as a dead switch is: carrier stays, frames vanish.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from cachekeep.errors import OrderFailed, Unusable

_CLONE_NEWNET = 0x40000000
_CUT_RULES = """
add table inet cachekeep
delete table inet cachekeep
table inet cachekeep {
  set links { type ifname; }
  set addresses { type ipv4_addr; }
  chain input { type filter hook input priority 0; iifname @links drop; ip saddr @addresses drop; ip daddr @addresses drop; }
  chain output { type filter hook output priority 0; oifname @links drop; ip saddr @addresses drop; ip daddr @addresses drop; }
}
"""


def _run(*argv: str, text: str | None = None) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OrderFailed(f"{' '.join(argv[:6])}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def _announcer(namespace: str) -> socket.socket:
    """A packet socket that lives in the namespace. A thread of its own goes in to open it, and ends there."""
    opened: list[socket.socket] = []

    def go_in() -> None:
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) == 0:
                opened.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
                opened[0].bind(("eth0", 0))
        finally:
            os.close(fd)

    thread = threading.Thread(target=go_in)
    thread.start()
    thread.join()
    if not opened:
        raise Unusable(f"The network namespace {namespace} cannot be entered.")
    return opened[0]


class ZoneNets:
    """Namespaces for ``zones``; their addresses come from ``prefix``, whose last one is the control plane's own.

    ``tag`` (at most 6 letters or digits) tells the namespaces of one data directory from those of another. All calls block for some
    milliseconds and raise ``OrderFailed`` with the words of ``ip`` or ``nft``.
    """

    def __init__(self, tag: str, prefix: ipaddress.IPv4Network, zones: Sequence[str]) -> None:
        if not (tag.isalnum() and len(tag) <= 6):
            raise Unusable(f"{tag!r}: a tag has at most 6 letters or digits.")
        self._prefix = prefix
        self._hub = f"ck-{tag}-hub"
        self._host_link = f"ck-{tag}"
        self._namespaces = {zone: f"ck-{tag}-{number}" for number, zone in enumerate(zones)}
        self._ports = {zone: f"z{number}" for number, zone in enumerate(zones)}
        self._announcers: dict[str, socket.socket] = {}
        self._owner: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def own_address(self) -> str:
        """The control plane's address on the bridge."""
        return str(self._prefix[-2])

    def __contains__(self, zone: str) -> bool:
        return zone in self._namespaces

    def open(self) -> None:
        """Make what is missing, take over what is there with its addresses, mend every cut. Raises ``Unusable`` without root."""
        if os.geteuid() != 0:
            raise Unusable("Zones with networks of their own need root.")
        if missing := [program for program in ("ip", "nft", "nsenter") if shutil.which(program) is None]:
            raise Unusable(f"Zones with networks of their own need {', '.join(missing)}.")
        there = {path.name for path in Path("/run/netns").glob("*")}
        wanted = [self._hub, *self._namespaces.values()]
        if there & set(wanted) and not there >= set(wanted):
            self._remove()  # half made, or half removed
            there = set()
        if self._hub not in there:
            try:
                self._make()
            except OrderFailed:
                self._remove()
                raise
        for zone, namespace in self._namespaces.items():
            self._announcers[zone] = _announcer(namespace)
            for link in json.loads(_run("ip", "-n", namespace, "-json", "addr", "show", "dev", "eth0")):
                for info in link["addr_info"]:
                    if info["family"] == "inet":
                        self._owner[info["local"]] = zone
            _run("ip", "netns", "exec", namespace, "nft", "-f", "-", text=_CUT_RULES)

    def _make(self) -> None:
        for namespace in (self._hub, *self._namespaces.values()):
            _run("ip", "netns", "add", namespace)
        hub = [
            "link add br0 type bridge forward_delay 0",
            "link set br0 up",
            "link set host master br0",
            "link set host up",
        ]
        links = [f"link add {self._host_link} type veth peer name host netns {self._hub}"]
        for zone, namespace in self._namespaces.items():
            links.append(f"link add eth0 netns {namespace} type veth peer name {self._ports[zone]} netns {self._hub}")
            hub += [f"link set {self._ports[zone]} master br0", f"link set {self._ports[zone]} up"]
        links += [f"addr add {self.own_address}/{self._prefix.prefixlen} dev {self._host_link}", f"link set {self._host_link} up"]
        _run("ip", "-batch", "-", text="\n".join(links))
        _run("ip", "-n", self._hub, "-batch", "-", text="\n".join(hub))
        for namespace in self._namespaces.values():
            _run("ip", "-n", namespace, "-batch", "-", text=f"link set lo up\nlink set eth0 up\nroute add {self._prefix} dev eth0")

    def _remove(self) -> None:
        for namespace in (self._hub, *self._namespaces.values()):
            if Path("/run/netns", namespace).exists():
                _run("ip", "netns", "del", namespace)
        if Path("/sys/class/net", self._host_link).exists():
            # Its peer goes with the hub, and it with its peer; the kernel takes its time, so it may be gone by now.
            subprocess.run(["ip", "link", "del", self._host_link], capture_output=True, check=False)

    def close(self) -> None:
        """Let go; networks and whoever lives in them stay."""
        for announcer in self._announcers.values():
            announcer.close()
        self._announcers.clear()

    def destroy(self) -> None:
        """Remove everything that ``open`` made. Processes that still live in a zone lose their network."""
        self.close()
        self._remove()
        self._owner.clear()

    def enter(self, zone: str) -> tuple[str, ...]:
        """What goes before the arguments of a process that shall live in the zone."""
        return ("nsenter", f"--net=/run/netns/{self._namespaces[zone]}", "--")

    def claim(self, address: str, zone: str) -> None:
        """Have ``address`` in ``zone`` and nowhere else, and let everybody know."""
        with self._lock:
            owner = self._owner.get(address)
            if owner not in (None, zone):
                self._drop(address)
            if owner != zone:
                _run("ip", "-n", self._namespaces[zone], "addr", "add", f"{address}/32", "dev", "eth0")
                self._owner[address] = zone
            self._announce(address, zone)

    def release(self, address: str, zone: str) -> None:
        """Take ``address`` away from ``zone``, if it has it."""
        with self._lock:
            if self._owner.get(address) == zone:
                self._drop(address)

    def _drop(self, address: str) -> None:
        _run("ip", "-n", self._namespaces[self._owner[address]], "addr", "del", f"{address}/32", "dev", "eth0")
        del self._owner[address]

    def _announce(self, address: str, zone: str) -> None:
        """A gratuitous ARP request (RFC 5227 §1.2, an ARP Announcement): whoever knows the address learns its new place."""
        announcer = self._announcers[zone]
        mac, packed = announcer.getsockname()[4], socket.inet_aton(address)
        head = b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
        announcer.send(head + mac + packed + b"\x00" * 6 + packed)

    def cut(self, zone: str) -> None:
        """Let nothing in or out of the zone; inside, all goes on."""
        self._drop_at("add", zone, "links", "eth0")

    def heal(self, zone: str) -> None:
        """End the cut of a zone."""
        self._drop_at("delete", zone, "links", "eth0")

    def cut_node(self, address: str) -> None:
        """Let nothing from or to the address pass, in its own zone neither. Connections that it opens are cut where they are bound to it."""
        self._drop_at("add", self._zone_of(address), "addresses", address)

    def heal_node(self, address: str) -> None:
        """End the cut of an address."""
        self._drop_at("delete", self._zone_of(address), "addresses", address)

    def _zone_of(self, address: str) -> str:
        try:
            return self._owner[address]
        except KeyError:
            raise OrderFailed(f"{address} is in no zone.") from None

    def _drop_at(self, verb: str, zone: str, what: str, name: str) -> None:
        element = f'element inet cachekeep {what} {{ "{name}" }}\n'
        # nft refuses to delete what is not there; adding it first makes healing idempotent.
        orders = f"add {element}" + (f"delete {element}" if verb == "delete" else "")
        _run("ip", "netns", "exec", self._namespaces[zone], "nft", "-f", "-", text=orders)
