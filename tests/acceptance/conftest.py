"""One Cachekeep for all tests that leave it in order, one of its own for each that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.installation import Installation


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("ck"))
    try:
        yield made.up()
    finally:
        made.close()


@pytest.fixture
def client(installation: Installation) -> Any:
    return installation.client()


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[..., Installation]]:
    """Makes installations that a test may maltreat; not started yet."""
    made: list[Installation] = []

    def make(*options: str) -> Installation:
        made.append(Installation(tmp_path / str(len(made)), *options))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()
