"""The locks are in step with pyproject.toml, pin everything by hash, and name no index and no place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIBRARY = tomllib.loads((ROOT / "packages" / "cachekeep-patterns" / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
RUN = [*PROJECT["project"]["dependencies"], *EXTRAS["engines"], *GROUPS["build"], *PROJECT["build-system"]["requires"]]
BENCH = GROUPS["bench"]
PLUGGED = [text for name, extra in LIBRARY["optional-dependencies"].items() if name != "all" for text in extra]
DEV = [*RUN, *GROUPS["dev"], *EXTRAS["postgres"], *EXTRAS["fast"], *LIBRARY["dependencies"], *PLUGGED]


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text()
    return {canonicalize_name(n): v for n, v in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)}


@pytest.mark.parametrize(("lock", "wanted"), [("run.lock", RUN), ("dev.lock", DEV), ("bench.lock", [*DEV, *BENCH])])
def test_every_requirement_is_pinned_to_a_version_it_allows(lock: str, wanted: list[str]) -> None:
    held = pins(lock)
    outside = {
        text: held.get(canonicalize_name(requirement.name))
        for text in wanted
        for requirement in [Requirement(text)]
        if not requirement.specifier.contains(held.get(canonicalize_name(requirement.name), "0"), prereleases=True)
        or canonicalize_name(requirement.name) not in held
    }
    assert not outside, "pyproject.toml and the lock differ: run make lock"


def test_what_runs_is_what_is_tested() -> None:
    tested = pins("dev.lock")
    assert {name: version for name, version in pins("run.lock").items() if tested.get(name) != version} == {}


@pytest.mark.parametrize("lock", ["run.lock", "dev.lock", "bench.lock"])
def test_a_lock_names_no_host_and_no_place(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert (
        re.findall(r"\S*://\S*|(?:^|\s)(?:-i|-f|--\w+-url|--find-links)\b.*|\S*\.(?:org|com|net|io)\b\S*|(?:^|\s|=)/\S+", text)
        == []
    )


@pytest.mark.parametrize("lock", ["run.lock", "dev.lock", "bench.lock"])
def test_every_pin_has_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / lock).read_text())
    assert [entry for entry in entries if "==" in entry and "--hash=sha256:" not in entry] == []
    assert len(entries) > 20
