"""Fronts as the loop uses them: which program serves one, where its directory is, what it is told."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from cachekeep.compute.contract import Key, ProcessSpec
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import EngineMissing
from cachekeep.model import Cache, Front, Node
from cachekeep.model.cache import FrontKind
from cachekeep.network import balancer, compatible, compatible_relay, discovery, relay

_RELAYS = {discovery.PROGRAM: relay, compatible.PROGRAM: compatible_relay}
_BINARY_PLACES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin"


def find_haproxy() -> str | None:
    """HAProxy's path; Debian keeps it off the PATH of ordinary users."""
    return shutil.which("haproxy") or shutil.which("haproxy", path=_BINARY_PLACES)


def programs(catalogue: Callable[[], Catalogue]) -> Callable[[str], tuple[str, ...]]:
    """How this machine runs the programs that specs of nodes and fronts name. Raises ``EngineMissing``."""

    def words(name: str) -> tuple[str, ...]:
        if name in _RELAYS:
            return (sys.executable, "-I", "-S", str(_RELAYS[name].__file__))
        if name != balancer.PROGRAM:
            return catalogue().command(name) or (name,)
        if (haproxy := find_haproxy()) is None:
            raise EngineMissing("haproxy is not installed; a reader endpoint over several replicas needs it: apt install haproxy")
        return (haproxy,)

    return words


class _Kind(Protocol):
    """What each kind of front is, on this machine: ``place`` is its process's own directory."""

    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        """See ``Fronts.spec``."""

    async def point(self, place: Path, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        """See ``Fronts.point``."""

    async def pointed(self, place: Path, front: Front) -> tuple[tuple[str, ...], int]:
        """See ``Fronts.pointed``."""


class _Discovery:
    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        version = nodes[0].version if nodes else cache.wanted.version
        return discovery.spec(cache, front, nodes, cache.decided.discovery_version, told_version=version)

    async def point(self, place: Path, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        await discovery.point(place, front, nodes, version)

    async def pointed(self, place: Path, front: Front) -> tuple[tuple[str, ...], int]:
        return await discovery.pointed(place, front)


class _Compatible:
    """Follows the primary endpoint by itself."""

    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        return compatible.spec(cache, front)

    async def point(self, place: Path, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        return

    async def pointed(self, place: Path, front: Front) -> tuple[tuple[str, ...], int]:
        await compatible.answers(front)
        return (), 0


class _Balancer:
    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        return balancer.spec(cache, front, nodes)

    async def point(self, place: Path, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        await balancer.point(place / balancer.SOCKET, [(n.name, n.address, n.port) for n in nodes])

    async def pointed(self, place: Path, front: Front) -> tuple[tuple[str, ...], int]:
        return await balancer.pointed(place / balancer.SOCKET), 0


_KINDS: Final[dict[FrontKind, _Kind]] = {"discovery": _Discovery(), "compatible": _Compatible(), "balancer": _Balancer()}


class LocalFronts:
    """Fronts that are processes of this machine. ``directory_of`` says where the driver keeps a process's own files."""

    def __init__(self, directory_of: Callable[[Key], Path]) -> None:
        self._directory_of = directory_of

    def spec(self, cache: Cache, front: Front, nodes: tuple[Node, ...]) -> ProcessSpec:
        """How to start the front, already pointed at ``nodes``."""
        return _KINDS[front.kind].spec(cache, front, nodes)

    async def point(self, cache: Cache, front: Front, nodes: tuple[Node, ...], version: int) -> None:
        """Pass on to these nodes from now on. Raises ``OrderFailed``."""
        await _KINDS[front.kind].point(self._directory(cache, front), front, nodes, version)

    async def pointed(self, cache: Cache, front: Front) -> tuple[tuple[str, ...], int]:
        """Names of the nodes it passes on to (none: it follows the primary endpoint), and the version of its list (0:
        it has none). Raises ``OrderFailed``."""
        return await _KINDS[front.kind].pointed(self._directory(cache, front), front)

    async def post(self, cache: Cache, node: Node, payload: str) -> None:
        """Put a discovery list on the board of a Memcached node, if it has one. Raises ``OrderFailed``."""
        discovery.post(self._directory_of((cache.uid, node.name)), node.name, payload)

    def _directory(self, cache: Cache, front: Front) -> Path:
        return self._directory_of((cache.uid, front.name))
