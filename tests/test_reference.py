"""The generated reference is what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from tools import states
from tools.reference import PAGES, REFERENCE

from cachekeep.model import Change, Fate


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_a_page_is_what_the_code_says(page: Path) -> None:
    assert page.read_text() == PAGES[page](), "run make docs"


def test_every_page_is_generated() -> None:
    assert set(REFERENCE.glob("*.md")) <= set(PAGES)


def test_every_state_is_decided_by_some_rule_and_none_is_for_ever() -> None:
    drawn = re.findall(r"--> (\w+) :(.*)", states.text())
    assert [state for state, who in drawn if not who.strip()] == []
    assert [state for state, _ in drawn] == [each.__name__ for each in (*get_args(Change), *get_args(Fate))]
    assert len(re.findall(r"^Over by `", states.text(), re.MULTILINE)) == 2
