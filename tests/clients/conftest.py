"""One Cachekeep for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.acceptance.installation import Installation


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("ck-clients"))
    try:
        yield made.up()
    finally:
        made.close()
