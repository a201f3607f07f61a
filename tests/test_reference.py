"""The generated reference is what the code says."""

from __future__ import annotations

import pytest
from tools.reference import PAGES, REFERENCE


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_code_says(page: str) -> None:
    assert (REFERENCE / page).read_text() == PAGES[page](), "run make docs"


def test_every_page_is_generated() -> None:
    assert {path.name for path in REFERENCE.glob("*.md")} == set(PAGES)
