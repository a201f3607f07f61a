"""The page of operations says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from cachekeep.services import SERVICES
from cachekeep.services.reference import parameters, text
from cachekeep.wire.model import service_model

PAGE = Path(__file__).parents[2] / "docs/reference/operations.md"


def test_the_page_is_what_the_generator_writes() -> None:
    assert PAGE.read_text() == text(), "run: python -m cachekeep.services.reference > docs/reference/operations.md"


def test_every_operation_of_the_model_is_on_it() -> None:
    page = PAGE.read_text()
    names = service_model("elasticache").operation_names
    assert [name for name in names if f"| {name} |" not in page] == []


def test_the_tests_that_the_page_of_parameters_names_are_there() -> None:
    tests = (Path(__file__).parent / "test_parameters.py").read_text()
    named = re.findall(r"`(test_\w+)`", parameters())
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_operation_has_its_sentence() -> None:
    for service in SERVICES:
        assert [name for name, operation in service.operations.items() if not operation.summary] == []
