"""Which engine builds are installed, what each can do, and which build serves a version that a request asks for.

Pure: tables and rules over ``Build`` values; ``installed.discover`` looks at the machine and makes them.
The rules and their reasons are in docs/decisions/0003-engine-versions.md.
"""

from __future__ import annotations

import functools
import itertools
import shlex
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from cachekeep.engines import discovery
from cachekeep.engines.holes import Hole, holes
from cachekeep.errors import EngineMissing, InvalidCombination, InvalidValue

Engine = Literal["memcached", "redis", "valkey"]
ENGINES: tuple[Engine, ...] = ("memcached", "redis", "valkey")
Numbers = tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def numbers(version: str) -> Numbers:
    """``"8.0.1"`` → ``(8, 0, 1)``. Raises ValueError for anything but dotted numbers."""
    return tuple(int(part) for part in version.split("."))


# --- what a build can do

# capability → the first version of each engine that has it
_SINCE: dict[str, dict[str, Numbers]] = {
    "acl": {"redis": (6, 0), "valkey": (7, 2)},
    "acl-selectors": {"redis": (7, 0), "valkey": (7, 2)},
    "failover-command": {"redis": (6, 2), "valkey": (7, 2)},
    "functions": {"redis": (7, 0), "valkey": (7, 2)},
    "sharded-pubsub": {"redis": (7, 0), "valkey": (7, 2)},
    "multi-part-aof": {"redis": (7, 0), "valkey": (7, 2)},
    "aof-timestamps": {"redis": (7, 0), "valkey": (7, 2)},
    "cluster-hostnames": {"redis": (7, 0), "valkey": (7, 2)},
    "dual-channel-replication": {"valkey": (8, 0)},
    "slot-stats": {"valkey": (8, 0)},
    "commandlog": {"valkey": (8, 1)},
    "atomic-slot-migration": {"valkey": (9, 0)},
    "cluster-databases": {"valkey": (9, 0)},
    "hash-field-expiration": {"valkey": (9, 0)},
    "meta-commands": {"memcached": (1, 6)},
}


def capabilities_of(engine: str, version: str) -> frozenset[str]:
    """What every build of this version of the engine can do (TLS and the allocator are each build's own)."""
    at = numbers(version)
    return frozenset(name for name, since in _SINCE.items() if engine in since and at >= since[engine])


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One installed engine build. Paths are absolute; ``cli`` and ``benchmark`` may come from another build of the engine's kin."""

    engine: Engine
    version: str
    """As the program says it, all three numbers."""
    server: str
    cli: str | None = None
    benchmark: str | None = None
    tls: bool = False
    """The program itself got as far as asking for a certificate."""
    allocator: str = ""
    """``jemalloc-5.3.0``, ``libc`` …; empty when the program does not say (memcached)."""
    capabilities: frozenset[str] = frozenset()
    preload: str = ""
    """Memcached: a library with which it answers ``config get cluster``; tried."""
    preload_problem: str = ""
    """Memcached: why it has none, if that was looked into."""
    mended: frozenset[str] = frozenset()
    """Holes (CVE ids) that its package says are mended in it."""

    @property
    def holes(self) -> tuple[Hole, ...]:
        """Those that are known, the gravest first."""
        return holes(self.engine, self.numbers, self.mended)

    @property
    def unsafe(self) -> bool:
        """Whether a client may take more from it than it is given."""
        return any(hole.grave for hole in self.holes)

    @property
    def warning(self) -> str:
        """What is to be known of its holes, in a few words; empty: nothing."""
        if not self.holes:
            return ""
        return f"{'unsafe: ' if self.unsafe else ''}known holes {', '.join(hole.id for hole in self.holes)}"

    @property
    def open_to_clients(self) -> tuple[str, ...]:
        """Commands by which any client may change the server for all others. ElastiCache's Memcached has no users either."""
        if self.engine != "memcached":
            return ()
        withheld = () if self.preload else ("slabs", "lru", "verbosity")
        return ("cache_memlimit", "flush_all", "watch", "lru_crawler", *withheld)

    @property
    def numbers(self) -> Numbers:
        return numbers(self.version)

    @property
    def program(self) -> str:
        """By which whoever starts it knows it, on whatever machine."""
        return f"{self.engine}-{self.version}{'+tls' if self.tls else ''}"

    @property
    def family(self) -> str:
        return family_of(self.engine, self.version)

    def can(self, *needs: str) -> bool:
        """Whether it has every capability named; ``"tls"`` counts as one."""
        return all(self.tls if need == "tls" else need in self.capabilities for need in needs)


# --- what ElastiCache offers


def family_of(engine: str, version: str) -> str:
    """``("redis", "6.2")`` → ``redis6.x``: the parameter group family of a version [CacheParameterGroupFamily in the API]."""
    at = numbers(version)
    if engine == "valkey" or (engine == "redis" and at[0] >= 7):
        return f"{engine}{at[0]}"
    if engine == "redis" and at[0] == 6:
        return "redis6.x"
    return f"{engine}{at[0]}.{at[1]}"


class Offer(msgspec.Struct, frozen=True):
    """A version that ElastiCache lets a request name, and the oldest open-source version that speaks all of it."""

    engine: Engine
    version: str
    needs: Numbers

    @property
    def family(self) -> str:
        return family_of(self.engine, self.version)


# Redis 7.1 exists at AWS only: 7.0 with faster networking, the same commands and file format.
_SPEAKS_AS: dict[tuple[str, str], Numbers] = {("redis", "7.1"): (7, 0)}
_VERSIONS: dict[Engine, str] = {
    "memcached": "1.4.5 1.4.14 1.4.24 1.4.33 1.4.34 1.5.10 1.5.16 1.6.6 1.6.12 1.6.17 1.6.22",
    "redis": "4.0.10 5.0.6 6.0 6.2 7.0 7.1",
    "valkey": "7.2 8.0 8.1 8.2 9.0 9.1",
}
OFFERS: tuple[Offer, ...] = tuple(
    Offer(engine, version, _SPEAKS_AS.get((engine, version), numbers(version)))
    for engine, versions in _VERSIONS.items()
    for version in versions.split()
)
"""Every version of the node-based API, oldest first [AWS: Supported engines and versions]."""

_TOO_NEW: dict[str, Numbers] = {"redis": (7, 3)}
"""ElastiCache's Redis line ends below this, and so does Redis under the BSD licence."""


def offer_of(engine: str, asked: str) -> Offer:
    """The offer that an ``EngineVersion`` names. ``6.x`` is the newest 6 [AWS: CreateReplicationGroup, EngineVersion].

    Raises InvalidCombination for a version that ElastiCache never had, InvalidValue for a patch where only major.minor may be
    named; in AWS's words, with what there is.
    """
    named = {offer.version: offer for offer in OFFERS if offer.engine == engine}
    if engine == "redis" and asked == "6.x":
        asked = "6.2"
    if asked in named:
        return named[asked]
    minor = ".".join(asked.split(".")[:2])
    if asked.count(".") == 2 and minor in named:
        raise InvalidValue(f"Specific version selection is not allowed for '{asked}', please use '{minor}'")
    raise InvalidCombination(f"Cannot find version {asked} for {engine}: there are {', '.join(named)}")


# --- which build serves what


class EngineVersion(msgspec.Struct, frozen=True):
    """One entry of DescribeCacheEngineVersions: an offer and the build that serves it."""

    offer: Offer
    build: Build

    @property
    def description(self) -> str:
        return "memcached" if self.offer.engine == "memcached" else self.offer.engine.title()

    @property
    def version_description(self) -> str:
        """Names the build that really runs, patch and all, as AWS does; its holes, and what it leaves open."""
        told = [self.build.warning] if self.build.warning else []
        if self.build.open_to_clients:
            told.append(f"open to every client: {', '.join(self.build.open_to_clients)}")
        named = f"{self.offer.engine} version {self.build.version}"
        return f"{named} ({'; '.join(told)})" if told else named


def _nearness(build: Build, offer: Offer) -> tuple[bool, Numbers, bool, bool, Numbers]:
    """Smaller is better: the same minor first, then the nearest newer one; a safe one before an unsafe one; with TLS before
    without; then the newest patch."""
    patch = build.numbers[2:]
    exact = build.numbers[: len(numbers(offer.version))] == numbers(offer.version)
    return (not exact, build.numbers[:2], build.unsafe, not build.tls, tuple(-part for part in patch))


def _serves(build: Build, offer: Offer) -> bool:
    if build.engine != offer.engine or build.family != offer.family:
        return False
    return offer.needs <= build.numbers < _TOO_NEW.get(build.engine, (10**6,))


def _rank(offer: Offer, build: Build) -> tuple[bool, bool, Numbers]:
    """Greater is better, as a default."""
    return (not build.unsafe, build.tls, numbers(offer.version))


_PACKAGED: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "memcached": ((1, 6),),
    "redis": ((7, 0),),
    "valkey": ((8, 0), (8, 1), (9, 1)),
}
"""The lines of which a Debian suite has a source package, oldest first: what can be built here. Some mirrors lack some; where one
does, ``engines install`` says what it has."""


def packaged(offer: Offer) -> Numbers | None:
    """The newest line that can be built here and serves ``offer``; None: there is none."""
    newest = [Build(engine=offer.engine, version=f"{major}.{minor}.{10**6}", server="") for major, minor in _PACKAGED[offer.engine]]
    return max((build.numbers[:2] for build in newest if _serves(build, offer)), default=None)


class Catalogue(msgspec.Struct, frozen=True):
    """The installed builds, and the programs that looked like one and did not run (path → why)."""

    builds: tuple[Build, ...] = ()
    broken: dict[str, str] = {}
    data_dir: str = ""
    """For which ``engines install`` must build, to serve here; empty: the one that it takes by itself."""

    @property
    def lacks(self) -> tuple[str, ...]:
        """What nodes of a build do not do as ElastiCache's, in a sentence that says what to do about it."""
        return tuple(
            f"Nodes of memcached {b.version} answer `get {discovery.KEY}`, but not `config get cluster`: only the configuration "
            f"endpoint does. {b.preload_problem}"
            for b in self.builds
            if b.preload_problem
        )

    @property
    def to_build(self) -> str | None:
        """The engine of which a build that is safe and has TLS would be better than what is here; None: there is one."""
        return None if any(b.engine == "valkey" and b.tls and not b.unsafe for b in self.builds) else "valkey"

    def serving(self, offer: Offer, needs: Iterable[str] = ()) -> Build | None:
        """The best build for an offer, or None. ``needs`` are capabilities it must have, ``"tls"`` among them."""
        needs = tuple(needs)
        fit = (build for build in self.builds if _serves(build, offer) and build.can(*needs))
        return min(fit, key=lambda build: _nearness(build, offer), default=None)

    def default_offer(self, engine: str, needs: Iterable[str] = ()) -> Offer | None:
        """What a request without a version gets: the newest version that a safe build with TLS serves, else a safe build, else one
        with TLS."""
        needs = tuple(needs)
        served = [(offer, self.serving(offer, needs)) for offer in OFFERS if offer.engine == engine]
        ranked = [(_rank(offer, build), offer) for offer, build in served if build is not None]
        return max(ranked, key=lambda entry: entry[0])[1] if ranked else None

    def choose(self, engine: str, asked: str | None = None, needs: Iterable[str] = ()) -> tuple[Offer, Build]:
        """The version that a request means (None: the default) and the build that serves it.

        Raises what ``offer_of`` raises, EngineMissing when no installed build can serve it.
        """
        needs = tuple(needs)
        offer = offer_of(engine, asked) if asked is not None else self.default_offer(engine, needs)
        build = self.serving(offer, needs) if offer is not None else None
        if offer is None or build is None:
            raise EngineMissing(self._how_to_get(engine, offer, needs))
        return offer, build

    def command(self, program: str) -> tuple[str, ...]:
        """How a build's server is run, by ``Build.program``; empty: it is none of these."""
        for build in self.builds:
            if build.program == program:
                return ("env", f"LD_PRELOAD={build.preload}", build.server) if build.preload else (build.server,)
        return ()

    def resolve(self, engine: str, asked: str | None = None, needs: Iterable[str] = ()) -> Build:
        """The build of ``choose``."""
        return self.choose(engine, asked, needs)[1]

    def versions(
        self, engine: str | None = None, version: str | None = None, family: str | None = None, default_only: bool = False
    ) -> list[EngineVersion]:
        """What DescribeCacheEngineVersions lists: only what an installed build serves, by engine, oldest version first."""
        served = ((offer, self.serving(offer)) for offer in OFFERS)
        wanted = [
            EngineVersion(offer, build)
            for offer, build in served
            if build is not None
            and engine in (None, offer.engine)
            and version in (None, offer.version)
            and family in (None, offer.family)
        ]
        if not default_only:
            return wanted
        groups = itertools.groupby(wanted, key=lambda entry: entry.offer.engine)
        return [max(entries, key=lambda entry: _rank(entry.offer, entry.build)) for _, entries in groups]

    def install_command(self, engine: str, line: Numbers | None = None) -> str:
        """What builds an engine for this installation; the newest line for None."""
        where = f" --data-dir {shlex.quote(self.data_dir)}" if self.data_dir else ""
        return f"cachekeep engines install {engine}@{'.'.join(map(str, line or _PACKAGED[engine][-1]))}{where}"

    def _how_to_get(self, engine: str, offer: Offer | None, needs: Sequence[str]) -> str:
        here = [build for build in self.builds if build.engine == engine]
        shown = ", ".join(sorted({b.version + ("" if b.tls else " without TLS") for b in here})) or "none"
        what = f"{engine} {offer.version}" if offer else engine
        wanting = f" with {' and '.join(need.upper() if need == 'tls' else need for need in needs)}" if needs else ""
        line = packaged(offer) if offer else _PACKAGED[engine][-1]
        said = f"No installed engine can serve {what}{wanting} (installed builds of {engine}: {shown})."
        if line is not None:
            return f"{said} To get one: `{self.install_command(engine, line)}`."
        return (
            f"{said} No Debian suite has its source, so it cannot be built: put its server on PATH, then start `cachekeep up` anew."
        )
