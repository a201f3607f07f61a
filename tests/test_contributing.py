"""What the checklists name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from cachekeep.engines.catalogue import OFFERS
from cachekeep.engines.node_types import offered
from cachekeep.engines.parameters import parameters
from cachekeep.model.step import Effect
from cachekeep.plan.planner import RULES
from cachekeep.toolchain.build import RECIPES
from cachekeep.toolchain.installed import _SERVERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:\.(?:py|md)|/))(?::(\w+))?`", TEXT)))
KINDS = ("an operation", "an effect", "a rule", "a kind of job", "a driver", "an engine or a version", "a worker")


def test_there_is_a_checklist_for_each_kind_of_change() -> None:
    assert tuple(re.findall("^## Add (.+)$", TEXT, re.MULTILINE)) == KINDS
    assert len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part)
def test_what_a_checklist_names_is_there(path: str, name: str) -> None:
    found = next((at for at in (ROOT / "src/cachekeep" / path, ROOT / path) if at.exists()), None)
    assert found is not None, f"there is no {path}"
    if name:
        defined = {
            target
            for node in ast.parse(found.read_text()).body
            for target in (
                [node.name]
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                else [t.id for t in getattr(node, "targets", [getattr(node, "target", None)]) if isinstance(t, ast.Name)]
            )
        }
        assert name in defined


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "ARCHITECTURE.md", "docs/decisions/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    at = ROOT / page
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", at.read_text())
    assert links
    assert [link for link in links if not (at.parent / link).exists()] == []


def test_every_word_of_the_glossary_is_used() -> None:
    rows = re.findall(r"^\| ([a-z ,]+) \| [^|]+ \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    words = [word for row in rows[1:] for word in row.split(", ")]
    source = "\n".join(path.read_text() for path in (ROOT / "src/cachekeep").rglob("*.py"))
    assert len(words) > 30
    assert [word for word in words if re.search(rf"\b{word}s?\b", source, re.IGNORECASE) is None] == []


def test_every_rule_and_every_effect_says_what_it_is_for() -> None:
    """``cachekeep explain --all`` shows the rules by these sentences."""
    named = [*(row.rule for row in RULES), *get_args(Effect)]
    assert [each.__name__ for each in named if not (each.__doc__ or "").strip()] == []


def test_every_engine_is_whole() -> None:
    """Offered, found, built, with parameters for each family and node types to run on."""
    assert {offer.engine for offer in OFFERS} == set(RECIPES) == set(_SERVERS.values())
    for offer in OFFERS:
        assert parameters(offer.family), offer
        assert offered(offer.engine), offer
