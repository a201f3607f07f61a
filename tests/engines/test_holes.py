"""Which versions have known holes, as their projects' release notes say."""

from __future__ import annotations

import pytest

from cachekeep.engines.catalogue import Build, numbers
from cachekeep.engines.holes import HOLES, holes

LUA = {"CVE-2025-49844", "CVE-2025-46817", "CVE-2025-46818", "CVE-2025-46819"}


@pytest.mark.parametrize(
    ("engine", "version", "has_lua_holes"),
    [
        ("valkey", "8.0.1", True),
        ("valkey", "8.0.5", True),
        ("valkey", "8.0.6", False),
        ("valkey", "8.1.3", True),
        ("valkey", "8.1.4", False),
        ("valkey", "7.2.10", True),
        ("valkey", "7.2.11", False),
        ("valkey", "9.0.0", False),  # a line that began after the fix
        ("redis", "6.2.19", True),
        ("redis", "6.2.20", False),
        ("redis", "7.0.15", True),  # a line that was never mended
        ("redis", "5.0.6", True),
        ("redis", "7.2.11", False),
        ("memcached", "1.6.18", False),
    ],
)
def test_the_holes_of_scripts(engine: str, version: str, has_lua_holes: bool) -> None:
    found = {hole.id for hole in holes(engine, numbers(version))}
    assert found & LUA == (LUA if has_lua_holes else set())


@pytest.mark.parametrize(
    ("version", "unsafe", "ids"),
    [
        ("9.1.4", False, set()),
        ("9.1.2", False, {"CVE-2026-130822"}),
        ("9.1.0", True, {"CVE-2026-130822", "CVE-2026-63639", "CVE-2026-56684"}),
        ("9.0.8", False, set()),
        ("8.0.13", False, set()),
        ("8.0.7", True, {"CVE-2026-130822", "CVE-2026-63639", "CVE-2026-56684"}),
        ("9.0.2", True, {h.id for h in HOLES} - LUA),
        ("8.1.6", True, {"CVE-2026-130822", "CVE-2026-63639", "CVE-2026-56684"}),  # CVE-2026-27623 came with 9.0
        ("9.2.0", False, set()),
    ],
)
def test_a_grave_hole_makes_a_build_unsafe(version: str, unsafe: bool, ids: set[str]) -> None:
    build = Build(engine="valkey", version=version, server="/x")
    assert {hole.id for hole in build.holes} == ids
    assert build.unsafe == unsafe
    assert build.warning.startswith("unsafe: ") == unsafe
    assert all(hole in build.warning for hole in ids)


def test_what_a_package_has_mended_is_no_hole() -> None:
    debian = Build(engine="redis", version="7.0.15", server="/x", mended=frozenset(LUA))
    assert (debian.holes, debian.warning, debian.unsafe) == ((), "", False)


def test_every_hole_has_a_source() -> None:
    assert all(hole.source.startswith("https://") and hole.fixed for hole in HOLES)
    assert len({hole.id for hole in HOLES}) == len(HOLES)
