"""Build an engine, with TLS, from the distribution's own source package.

apt does the fetching and the checking (Release signature, then hashes) from the machine's own mirror, but in a private place:
neither the machine's sources nor its package lists change. A build appears under its final name in one rename, or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from cachekeep.engines.catalogue import Build, Numbers, numbers
from cachekeep.engines.holes import holes
from cachekeep.errors import EngineMissing
from cachekeep.toolchain.aptsources import Source, source_text, sources_of, stanzas
from cachekeep.toolchain.installed import CHANGELOG, mended_by, probe, with_tools

_HALF_MADE = ".making-"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Progress(msgspec.Struct, frozen=True):
    """One thing to show: the stage, how far its estimate says it is (0–100, None where unknown), and the line that says so."""

    stage: str
    line: str
    percent: int | None = None


Tell = Callable[[Progress], None]


# --- pure: what to build, and how


class Recipe(msgspec.Struct, frozen=True):
    """How one engine is built from its unpacked source."""

    steps: tuple[tuple[str, ...], ...]
    """Commands, run in order in the source directory. The last one compiles."""
    programs: tuple[str, ...]
    """What is kept of the result, relative to the source directory. The first is the server."""
    libraries: tuple[str, ...]
    """What pkg-config must know."""


def _like_redis(name: str) -> Recipe:
    programs = tuple(f"{name}-{part}" for part in ("server", "cli", "benchmark"))
    return Recipe(
        steps=(("make", "-C", "src", "BUILD_TLS=yes", *programs),),
        programs=tuple(f"src/{program}" for program in programs),
        libraries=("openssl",),
    )


RECIPES: dict[str, Recipe] = {
    "valkey": _like_redis("valkey"),
    "redis": _like_redis("redis"),
    "memcached": Recipe(
        steps=(("./configure", "--enable-tls"), ("make", "memcached")),
        programs=("memcached",),
        libraries=("openssl", "libevent"),
    ),
}

_TOOLS = {"gcc": "gcc", "make": "make", "pkg-config": "pkg-config", "dpkg-source": "dpkg-dev", "apt-get": "apt"}
_LIBRARY_PACKAGES = {"openssl": "libssl-dev", "libevent": "libevent-dev"}


def parse_spec(spec: str) -> tuple[str, Numbers]:
    """``valkey@9.1`` → engine and the leading version numbers asked for (none: the newest). Raises EngineMissing."""
    engine, _, version = spec.partition("@")
    if engine not in RECIPES or not re.fullmatch(r"(\d+(\.\d+){0,2})?", version):
        known = ", ".join(f"{name}@VERSION" for name in RECIPES)
        raise EngineMissing(f"{spec!r} names no engine that can be built. It is one of {known}; for instance valkey@9.1")
    return engine, numbers(version) if version else ()


def upstream_version(package_version: str) -> str:
    """``5:7.0.15-1~deb12u5`` → ``7.0.15`` [Debian policy 5.6.12]; a repacked source's suffix (``+dfsg1``) goes too."""
    upstream = package_version.split(":", 1)[-1].rsplit("-", 1)[0]
    return re.split(r"[+~]", upstream)[0]


def pick_version(source_records: str, package: str, asked: Numbers) -> tuple[str, str] | None:
    """The newest fitting version in ``apt-cache showsrc`` output: the package's own, and upstream's. None: none fits."""
    found: list[tuple[Numbers, str, str]] = []
    for record in stanzas(source_records):
        own = record.get("version", "")
        upstream = upstream_version(own)
        if record.get("package") == package and re.fullmatch(r"\d+\.\d+\.\d+", upstream):
            at = numbers(upstream)
            if at[: len(asked)] == asked:
                found.append((at, own, upstream))
    return max(found)[1:] if found else None


def suites(distribution: str, codename: str) -> list[str]:
    """Where a newer engine is looked for, newest first; the machine's own release last."""
    if distribution == "ubuntu":
        return ["devel", f"{codename}-backports", f"{codename}-updates", codename]
    return list(dict.fromkeys(["sid", f"{codename}-backports", "testing", "stable", "oldstable", codename]))


class Compilation:
    """Estimates how far a compilation is: objects seen, out of the C files there are."""

    def __init__(self, c_files: int) -> None:
        self.expected = max(c_files, 1)
        self.seen: set[str] = set()

    def see(self, line: str) -> int:
        """Percent done after this line of output, 0–99, never falling."""
        self.seen.update(re.findall(r"[\w./+-]+\.o\b", line)[-1:])
        return min(99, 100 * len(self.seen) // self.expected)


# --- the edge


def install(spec: str, builds_dir: Path, progress: Tell = lambda _: None, *, safe: bool = False) -> Build:
    """Build what ``spec`` names into ``builds_dir/ENGINE-VERSION`` and return it; returns at once when it is there already.
    ``safe``: only of a source without grave holes that are known.

    Blocks for minutes. Raises EngineMissing, which says what was missing or failed; then nothing is left behind.
    """
    engine, asked = parse_spec(spec)
    recipe = RECIPES[engine]
    builds_dir.mkdir(parents=True, exist_ok=True)
    with _alone(builds_dir), tempfile.TemporaryDirectory(dir=builds_dir, prefix=_HALF_MADE) as scratch:
        work = Path(scratch)
        _ensure_tools(recipe, progress)
        failure: EngineMissing | None = None
        for apt, own_version, version in _sources(engine, asked, work, progress):
            final = builds_dir / f"{engine}-{version}"
            if final.exists():
                progress(Progress("ready", f"{engine} {version} is installed already", 100))
                return with_tools(probe(final / Path(recipe.programs[0]).name))
            try:
                source = _fetch_source(apt, engine, own_version, work, progress)
                if safe:
                    _refuse_unsafe(engine, version, source)
                break
            except EngineMissing as error:  # a mirror may list what it no longer holds; another suite may have it
                failure = error
        else:
            raise failure or EngineMissing(f"no source package of {spec} could be fetched")
        _compile(recipe, source, progress)
        kept = _keep(recipe, source, work / "kept")
        built = probe(kept / Path(recipe.programs[0]).name)
        if built.version != version or not built.tls:
            raise EngineMissing(f"the build of {engine} {version} came out as {built.version}, TLS {built.tls}; it was not kept")
        os.sync()
        kept.rename(final)
        progress(Progress("ready", f"{engine} {version} is installed in {final}", 100))
        return with_tools(msgspec.structs.replace(built, server=str(final / Path(built.server).name)))


def _refuse_unsafe(engine: str, version: str, source: Path) -> None:
    """Raises EngineMissing for a source with grave holes that the distribution has not mended."""
    grave = [hole.id for hole in holes(engine, numbers(version), mended_by(source / "debian" / "changelog")) if hole.grave]
    if grave:
        raise EngineMissing(f"the newest source of {engine} that can be had here, {version}, has known holes: {', '.join(grave)}")


@contextlib.contextmanager
def _alone(builds_dir: Path) -> Iterator[None]:
    """One build at a time; what a killed one left is swept away. Raises EngineMissing while another is at it."""
    with (builds_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineMissing(f"another build is under way in {builds_dir}; wait for it and try again") from None
        for left in builds_dir.glob(_HALF_MADE + "*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _ensure_tools(recipe: Recipe, progress: Tell) -> None:
    """Compiler and headers, by apt as root. Raises EngineMissing with the one command to run where that cannot be."""

    def lacking() -> list[str]:
        packages = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
        for library in recipe.libraries:
            known = ["pkg-config", "--exists", library]
            if shutil.which("pkg-config") is None or subprocess.run(known, check=False).returncode != 0:
                packages.append(_LIBRARY_PACKAGES[library])
        return packages

    packages = lacking()
    if packages and os.geteuid() == 0 and "apt" not in packages:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            _run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *command], Path("/"), "tools", progress, may_fail=True)
        packages = lacking()
    if packages:
        raise EngineMissing(f"building needs packages that are missing here: apt install {' '.join(packages)}")


def _sources(engine: str, asked: Numbers, work: Path, progress: Tell) -> Iterator[tuple[list[str], str, str]]:
    """Suite by suite: apt options under which a fitting source package is known, its version, and upstream's.

    Raises EngineMissing, at the end, if there was none.
    """
    release = _os_release()
    codename = release.get("VERSION_CODENAME", "")
    targets = subprocess.run(["apt-get", "indextargets"], capture_output=True, text=True, check=False).stdout
    mirrors = sources_of(targets, codename, lambda name: Path(name).read_text())
    if not mirrors:
        raise EngineMissing("apt knows of no mirror of this release on this machine, so there is no source package to build from")
    tried: list[str] = []
    found = False
    for suite in suites(release.get("ID", ""), codename):
        for number, mirror in enumerate(mirrors):
            progress(Progress("look up", f"looking for {engine} {'.'.join(map(str, asked))} in {suite}"))
            options = _private_apt(work / f"apt-{suite}-{number}", mirror, suite)
            if not _run(["apt-get", *options, "-q", "update"], work, "look up", progress, may_fail=True):
                continue
            shown = subprocess.run(["apt-cache", *options, "showsrc", engine], capture_output=True, text=True, check=False).stdout
            picked = pick_version(shown, engine, asked)
            if picked is not None:
                found = True
                yield options, *picked
            tried += [f"{suite} has {upstream_version(r['version'])}" for r in stanzas(shown) if "version" in r]
    wanted = ".".join(map(str, asked))
    if not found:
        raise EngineMissing(
            f"no source package of {engine} {wanted} on this machine's mirror ({'; '.join(tried) or 'none at all'})"
        )


def _os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def _private_apt(home: Path, mirror: Source, suite: str) -> list[str]:
    """Options that make apt use only ``suite`` of ``mirror``, source packages only, and keep all of its state in ``home``."""
    for name in ("lists/partial", "cache/archives/partial", "sources"):
        (home / name).mkdir(parents=True)
    (home / "sources" / "one.sources").write_text(source_text(mirror, suite, "deb-src"))
    settings = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": str(home / "sources"),
        "Dir::State::Lists": str(home / "lists"),
        "Dir::Cache": str(home / "cache"),
        "APT::Sandbox::User": "",  # the sandbox user may not read a private directory
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _fetch_source(apt: Sequence[str], engine: str, own_version: str, work: Path, progress: Tell) -> Path:
    """The unpacked source, with the distribution's patches. apt has checked every file against the signed index."""
    work = Path(tempfile.mkdtemp(dir=work))  # its own, so that what a failed fetch left is not taken for this one's
    source = work / "source"
    fetch = ["apt-get", *apt, "-q", "source", "--only-source", "--download-only", f"{engine}={own_version}"]
    _run(fetch, work, "fetch", progress)
    (description,) = work.glob("*.dsc")
    _run(["dpkg-source", "--no-check", "--extract", str(description), str(source)], work, "unpack", progress)
    return source


def _compile(recipe: Recipe, source: Path, progress: Tell) -> None:
    jobs = str(len(os.sched_getaffinity(0)))
    compilation = Compilation(_c_files(source))
    for step in recipe.steps:
        command = [*step, f"-j{jobs}"] if step[0] == "make" else list(step)
        _run(command, source, "compile", lambda seen: progress(msgspec.structs.replace(seen, percent=compilation.see(seen.line))))


def _c_files(source: Path) -> int:
    return sum(1 for path in source.rglob("*.c") if not {"test", "tests", "unit", "examples", "debian"} & set(path.parts))


def _keep(recipe: Recipe, source: Path, kept: Path) -> Path:
    kept.mkdir(mode=0o755)
    for program in recipe.programs:
        copy = kept / Path(program).name
        shutil.copy2(source / program, copy)
        subprocess.run(["strip", "--strip-debug", str(copy)], check=False)  # a smaller file; its crash reports still name functions
    for licence in source.glob("COPYING*"):
        shutil.copy2(licence, kept)
    with contextlib.suppress(FileNotFoundError):  # what the distribution has mended
        shutil.copy2(source / "debian" / "changelog", kept / CHANGELOG)
    return kept


def _run(command: Sequence[str], directory: Path, stage: str, progress: Tell, *, may_fail: bool = False) -> bool:
    """Run a command and tell each line it prints. Whether it succeeded; raises EngineMissing with its last lines if it must."""
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "CFLAGS", "LDFLAGS"}}
    environment |= {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    last: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        for raw in process.stdout:
            line = _COLOUR.sub("", raw.decode(errors="replace")).strip()
            if line:
                last = [*last[-11:], line]
                progress(Progress(stage, line))
        code = process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code != 0 and not may_fail:
        raise EngineMissing(f"{stage} failed: {' '.join(command[:3])} ended with {code}: " + " | ".join(last))
    return code == 0
