"""The generated reference is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.reference import PAGES, REFERENCE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_a_page_is_what_the_code_says(page: Path) -> None:
    assert page.read_text() == PAGES[page](), "run make docs"


def test_every_page_is_generated() -> None:
    assert set(REFERENCE.glob("*.md")) <= set(PAGES)
