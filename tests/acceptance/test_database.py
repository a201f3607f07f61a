"""A database belongs to one data directory: nobody else knows the engines that it speaks of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from cachekeep.app import App
from cachekeep.errors import Unusable
from cachekeep.settings import Settings


async def _start_and_stop(settings: Settings) -> None:
    app = App(settings)
    await app.start()
    await app.stop()


def test_a_second_data_directory_is_refused_and_the_first_still_starts(tmp_path: Path) -> None:
    one = Settings(data_dir=tmp_path / "one", port=0, database=f"sqlite:///{tmp_path}/shared.db")
    asyncio.run(_start_and_stop(one))
    with pytest.raises(Unusable, match="another data directory"):
        asyncio.run(_start_and_stop(replace(one, data_dir=tmp_path / "two")))
    asyncio.run(_start_and_stop(one))
