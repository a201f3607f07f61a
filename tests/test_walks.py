"""The walks lead through places that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "walks.md").read_text()
STOPS = {
    title: re.findall(r"^\d+\. ", body, re.MULTILINE) for title, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n)+)", TEXT, re.M)
}
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXT)))


def test_each_walk_has_fifteen_stops_at_most_and_each_stop_a_place() -> None:
    assert list(STOPS) == ["A create", "A crash", "A reshard"]
    assert all(5 < len(stops) <= 15 for stops in STOPS.values())
    assert len(NAMED) > 35
    assert not re.findall(r"`[\w/]+/[\w]+\.py`", TEXT), "a file is named with what to read in it"


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_a_walk_names_is_there(path: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / "src/cachekeep" / path).read_text()).body
    for part in name.split("."):
        found = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and n.name == part]
        assert found, f"{path} has no {name}"
        body = found[0].body
