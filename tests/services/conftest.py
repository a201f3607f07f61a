"""The endpoint that most tests here speak to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.services.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()
