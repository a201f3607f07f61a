"""The page of operations says what the code does."""

from __future__ import annotations

from pathlib import Path

from cachekeep.services import SERVICES
from cachekeep.services.reference import text
from cachekeep.wire.model import service_model

PAGE = Path(__file__).parents[2] / "docs/reference/operations.md"


def test_the_page_is_what_the_generator_writes() -> None:
    assert PAGE.read_text() == text(), "run: python -m cachekeep.services.reference > docs/reference/operations.md"


def test_every_operation_of_the_model_is_on_it() -> None:
    page = PAGE.read_text()
    names = service_model("elasticache").operation_names
    assert [name for name in names if f"| {name} |" not in page] == []


def test_every_operation_has_its_sentence() -> None:
    for service in SERVICES:
        assert [name for name, operation in service.operations.items() if not operation.summary] == []
