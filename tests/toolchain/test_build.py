"""Building an engine: the pure pieces; the whole road with small programs for apt and gcc; and, asked for, the real thing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.toolchain.conftest import HAS_TLS, SERVER

from cachekeep.engines.holes import holes
from cachekeep.errors import EngineMissing
from cachekeep.toolchain.build import Compilation, Progress, install, parse_spec, pick_version, suites, upstream_version


@pytest.mark.parametrize(
    ("spec", "means"),
    [
        ("valkey@9.1", ("valkey", (9, 1))),
        ("valkey", ("valkey", ())),
        ("redis@7.0.15", ("redis", (7, 0, 15))),
        ("memcached@1", ("memcached", (1,))),
    ],
)
def test_a_spec_names_an_engine_and_the_start_of_a_version(spec: str, means: tuple[str, tuple[int, ...]]) -> None:
    assert parse_spec(spec) == means


@pytest.mark.parametrize("spec", ["", "keydb@6", "valkey@", "valkey@9.x", "valkey@9.1.2.3", "valkey@../../x", "valkey@9.1; id"])
def test_any_other_spec_is_refused_with_an_example(spec: str) -> None:
    if spec == "valkey@":
        assert parse_spec(spec) == ("valkey", ())
        return
    with pytest.raises(EngineMissing, match=r"for instance valkey@9\.1"):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("package", "upstream"),
    [
        ("5:7.0.15-1~deb12u5", "7.0.15"),
        ("9.1.2-1", "9.1.2"),
        ("8.0.1+dfsg1-1~bpo12+1", "8.0.1"),
        ("1.6.18-1+b1", "1.6.18"),
        ("9.2.0~rc1-1", "9.2.0"),
    ],
)
def test_upstream_version(package: str, upstream: str) -> None:
    assert upstream_version(package) == upstream


RECORDS = """\
Package: valkey
Version: 8.0.1-1

Package: valkey
Version: 9.1.2-1

Package: valkey
Version: 9.1.10-1

Package: python-valkey
Version: 9.9.9-1
"""


@pytest.mark.parametrize(
    ("asked", "picked"),
    [
        ((), ("9.1.10-1", "9.1.10")),
        ((9, 1), ("9.1.10-1", "9.1.10")),
        ((9, 1, 2), ("9.1.2-1", "9.1.2")),
        ((8,), ("8.0.1-1", "8.0.1")),
        ((7,), None),
        ((9, 9), None),  # another package's
    ],
)
def test_the_newest_fitting_source_is_picked(asked: tuple[int, ...], picked: tuple[str, str] | None) -> None:
    assert pick_version(RECORDS, "valkey", asked) == picked


def test_newer_suites_are_asked_before_the_machines_own() -> None:
    assert suites("debian", "bookworm") == ["sid", "bookworm-backports", "testing", "stable", "oldstable", "bookworm"]
    assert suites("ubuntu", "noble")[-1] == "noble"


def test_the_estimate_grows_with_the_objects_and_leaves_the_last_step_to_the_check() -> None:
    seen = Compilation(4)
    assert [seen.see(line) for line in ("CC a.o", "CC a.o", "making", "gcc -c b.c -o src/b.o", "CC c.o", "CC d.o", "CC e.o")] == [
        *(25, 25, 25, 50, 75, 99, 99)
    ]


# --- the whole road


def visible(builds: Path) -> list[str]:
    return sorted(entry.name for entry in builds.iterdir() if entry.name != ".lock")


def test_a_build_appears_whole_and_only_once(distribution: Path, tmp_path: Path) -> None:
    builds, told = tmp_path / "builds", list[Progress]()
    made = install("valkey@9.1", builds, told.append)
    assert (made.version, made.tls, made.server) == ("9.1.2", True, str(builds / "valkey-9.1.2" / "valkey-server"))
    assert made.cli == str(builds / "valkey-9.1.2" / "valkey-cli")
    assert visible(builds) == ["valkey-9.1.2"]
    assert [step.percent for step in told if step.stage == "compile"] == [50, 99]
    assert told[-1].percent == 100
    assert (builds / "valkey-9.1.2" / "COPYING").read_text() == "BSD\n"
    (distribution / "make").write_text("#!/bin/sh\nexit 1\n")
    assert install("valkey@9.1", builds) == made  # it is there: nothing is compiled


@pytest.mark.parametrize(
    ("program", "body", "says"),
    [
        ("make", "echo 'a.c:1: error: no'; exit 2", "a.c:1: error: no"),
        ("apt-cache", "printf 'Package: valkey\\nVersion: 8.0.1-1\\n'", "sid has 8.0.1"),
        ("apt-get", "exit 100", "no mirror of this release"),
        ("dpkg-source", "echo 'bad checksum'; exit 1", "bad checksum"),
    ],
)
def test_a_failure_says_why_and_leaves_nothing(distribution: Path, tmp_path: Path, program: str, body: str, says: str) -> None:
    (distribution / program).write_text(f"#!/bin/sh\n{body}\n")
    with pytest.raises(EngineMissing, match=says):
        install("valkey@9.1", tmp_path / "builds")
    assert visible(tmp_path / "builds") == []


def test_a_suite_that_lists_what_it_does_not_hold_is_passed_over(distribution: Path, tmp_path: Path) -> None:
    once = f"*source*) [ -e {tmp_path}/asked ] && touch valkey_9.1.2-1.dsc || {{ touch {tmp_path}/asked; exit 100; }};; esac"
    apt = (distribution / "apt-get").read_text()
    (distribution / "apt-get").write_text(apt[: apt.index("*source*")] + once + "\n")
    told: list[Progress] = []
    assert install("valkey@9.1", tmp_path / "builds", told.append).version == "9.1.2"
    assert len([step for step in told if "looking for" in step.line]) == 2


def test_a_build_that_came_out_without_tls_is_not_kept(distribution: Path, tmp_path: Path) -> None:
    (tmp_path / "server").write_text(SERVER.format(tls="Failed finding TLS support."))
    with pytest.raises(EngineMissing, match="TLS False"):
        install("valkey@9.1", tmp_path / "builds")
    assert visible(tmp_path / "builds") == []


def test_a_killed_build_leaves_nothing_that_the_next_does_not_sweep(distribution: Path, tmp_path: Path) -> None:
    builds = tmp_path / "builds"
    compiling = (distribution / "make").read_text()
    (distribution / "make").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/make.pid\necho CC a.o\nexec sleep 60\n")
    script = (
        "import sys; from pathlib import Path; from cachekeep.toolchain.build import install\n"
        f"install('valkey@9.1', Path({str(builds)!r}), lambda step: print(step.stage, flush=True))"
    )
    builder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert builder.stdout is not None
    assert any(line.strip() == "compile" for line in builder.stdout)
    (left,) = builds.glob(".making-*")
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    os.kill(int((tmp_path / "make.pid").read_text()), signal.SIGKILL)
    (distribution / "make").write_text(compiling)
    assert visible(builds) == [left.name]
    assert install("valkey@9.1", builds).version == "9.1.2"
    assert visible(builds) == ["valkey-9.1.2"]


def _source_of(distribution: Path, tmp_path: Path, version: str, changelog: str) -> None:
    """Have the distribution hold another version, with this changelog of its package."""
    (distribution / "apt-cache").write_text(f"#!/bin/sh\nprintf 'Package: valkey\\nVersion: {version}-1\\n'\n")
    (tmp_path / "server").write_text(SERVER.format(tls=HAS_TLS).replace("9.1.2", version))
    unpack = (distribution / "dpkg-source").read_text()
    (distribution / "dpkg-source").write_text(
        f"{unpack.rstrip()}; mkdir $last/debian; echo '{changelog}' > $last/debian/changelog\n"
    )


def test_a_source_with_grave_holes_is_not_built_where_a_safe_one_was_asked_for(distribution: Path, tmp_path: Path) -> None:
    _source_of(distribution, tmp_path, "9.1.0", "nothing mended")
    with pytest.raises(EngineMissing, match=r"the newest source of valkey that can be had here, 9\.1\.0, has known holes: CVE-"):
        install("valkey", tmp_path / "builds", safe=True)
    assert visible(tmp_path / "builds") == []
    assert install("valkey", tmp_path / "builds").unsafe


def test_what_the_distribution_has_mended_is_safe(distribution: Path, tmp_path: Path) -> None:
    grave = " ".join(hole.id for hole in holes("valkey", (9, 1, 0)) if hole.grave)
    _source_of(distribution, tmp_path, "9.1.0", f"Fix {grave}.")
    assert not install("valkey", tmp_path / "builds", safe=True).unsafe


def test_two_builds_at_once_are_refused(distribution: Path, tmp_path: Path) -> None:
    (tmp_path / "builds").mkdir()
    with (tmp_path / "builds" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EngineMissing, match="another build is under way"):
            install("valkey@9.1", tmp_path / "builds")


@pytest.mark.skipif(not os.environ.get("CACHEKEEP_TEST_SLOW"), reason="minutes long: set CACHEKEEP_TEST_SLOW=1")
def test_valkey_is_really_built_with_tls(tmp_path: Path) -> None:
    told: list[Progress] = []
    made = install("valkey@9.1", tmp_path, told.append)
    assert made.tls
    assert made.can("atomic-slot-migration")
    assert "jemalloc" in made.allocator
    percents = [step.percent for step in told if step.percent is not None]
    assert percents == sorted(percents)
    assert made.cli is not None
    assert "--tls" in subprocess.run([made.cli, "--help"], capture_output=True, text=True, check=False).stdout
