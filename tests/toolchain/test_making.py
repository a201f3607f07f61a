"""A build in the background: told while it goes on, ended with who asked for it, said once when it fails."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.acceptance.installation import Installation, eventually

from cachekeep.compute.local import proc
from cachekeep.settings import ENGINES_DIR
from cachekeep.toolchain import making as module
from cachekeep.toolchain.build import Progress
from cachekeep.toolchain.making import REPORT, Bulletin, Making, make, making, tried_lately

AGAIN = "cachekeep engines install valkey@9.1"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NICENESS", 0)


def _left(builds: Path) -> list[str]:
    return sorted(entry.name for entry in builds.iterdir() if entry.name != ".lock")


def test_it_is_told_how_far_a_build_is(tmp_path: Path) -> None:
    report = Bulletin(tmp_path / "engines", "valkey")
    assert report.tell(Progress("compile", "CC a.o", 41))
    assert not report.tell(Progress("compile", "CC b.o", 42))  # nothing new for anybody who looks
    found = making(tmp_path / "engines")
    assert found is not None
    assert found.sentence == "valkey is being built: compile, 40 %"
    report.done()
    assert making(tmp_path / "engines") is None


def test_a_killed_builder_builds_nothing(tmp_path: Path) -> None:
    gone = Making(spec="valkey", state="building", pid=2**22 + 1, at=0.0, stage="compile")
    (tmp_path / REPORT).write_bytes(msgspec.json.encode(gone))
    assert making(tmp_path) is None


@pytest.mark.parametrize(("hours", "lately"), [(1, True), (25, False)])
def test_what_failed_is_tried_again_another_day(tmp_path: Path, hours: int, lately: bool) -> None:
    failed = Making(spec="valkey", state="failed", pid=1, at=time.time() - hours * 3600, why="no compiler")
    (tmp_path / REPORT).write_bytes(msgspec.json.encode(failed))
    assert tried_lately(tmp_path, "valkey") == lately
    assert not tried_lately(tmp_path, "redis")


def test_who_comes_second_does_not_speak_for_the_first(tmp_path: Path) -> None:
    first = Making(spec="valkey", state="building", pid=1, at=time.time(), stage="compile", percent=10)
    (tmp_path / REPORT).write_bytes(msgspec.json.encode(first))
    Bulletin(tmp_path, "valkey").failed("another build is under way")
    assert making(tmp_path) == first


def test_a_build_in_the_background_is_there_at_its_end(
    distribution: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, module.log.name)
    builds = tmp_path / "data" / ENGINES_DIR
    assert asyncio.run(make("valkey", tmp_path / "data", builds, AGAIN))
    assert _left(builds) == ["valkey-9.1.2"]
    assert "valkey has been built; new caches and nodes that start anew use it" in caplog.messages


def test_a_failure_is_said_once_with_what_to_do(distribution: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (distribution / "make").write_text("#!/bin/sh\necho 'a.c:1: error: no'; exit 2\n")
    builds = tmp_path / "data" / ENGINES_DIR
    assert not asyncio.run(make("valkey", tmp_path / "data", builds, AGAIN))
    [said] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "valkey could not be built: compile failed" in said
    assert "a.c:1: error: no" in said
    assert f"To try again before tomorrow: `{AGAIN}`" in said
    assert _left(builds) == [REPORT]
    assert tried_lately(builds, "valkey")


def test_a_build_ends_with_who_asked_for_it(distribution: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "make.pid"
    (distribution / "make").write_text(f"#!/bin/sh\necho $$ > {compiler}.new; mv {compiler}.new {compiler}\nexec sleep 600\n")
    builds = tmp_path / "data" / ENGINES_DIR

    async def main() -> None:
        building = asyncio.create_task(make("valkey", tmp_path / "data", builds, AGAIN))
        while not compiler.exists():
            await asyncio.sleep(0.01)
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building

    asyncio.run(main())
    eventually(lambda: proc.stat(int(compiler.read_text())) is None, what="the end of the compiler")
    assert [name for name in _left(builds) if name != REPORT] == []
    assert making(builds) is None


def test_a_control_plane_builds_what_is_missing_and_uses_it(distribution: Path, another: Callable[..., Installation]) -> None:
    """The machine's own programs are behind those of the distribution on PATH, so the wheel serves meanwhile, if any does."""
    one = another("--build-engines").up()
    if "building: valkey with TLS" not in one.log.read_text():
        pytest.skip("needs a machine without a safe Valkey that has TLS")
    eventually(lambda: "valkey has been built" in one.log.read_text(), what="the build")
    builds = json.loads(one.run("engines", "--json").stdout)["builds"]
    [built] = [b for b in builds if b["server"].startswith(str(one.data_dir))]
    assert built["tls"]
    assert built["serves"] == ["9.0", "9.1"]
