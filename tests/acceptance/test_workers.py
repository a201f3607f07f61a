"""A worker that ends takes the control plane with it, in good order: whoever watches over it starts it anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cachekeep.app import App
from cachekeep.control.workers import Worker
from cachekeep.errors import CachekeepError
from cachekeep.settings import Settings


class Broken:
    """Fails before it has done anything."""

    async def run(self) -> None:
        raise CachekeepError("the collector is broken")

    def hasten(self) -> None: ...


class Diligent:
    """Does nothing, for as long as it may."""

    def __init__(self) -> None:
        self.hastened = 0

    async def run(self) -> None:
        await asyncio.Event().wait()

    def hasten(self) -> None:
        self.hastened += 1


async def _serve(settings: Settings, *more: Worker, reload: bool = False) -> None:
    app = App(settings)
    await app.start()
    try:
        assert app._parts is not None
        app._parts = app._parts._replace(workers=(*app._parts.workers, *more))
        if reload:
            await app.reload()
            app.finish()
        await asyncio.wait_for(app.serve(), 60)
    finally:
        await app.stop()


def test_a_worker_that_fails_ends_the_control_plane(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=0)
    with pytest.raises(CachekeepError, match="the collector is broken"):
        asyncio.run(_serve(settings, Diligent(), Broken()))


def test_all_workers_hear_that_engines_were_installed(tmp_path: Path) -> None:
    first, second = Diligent(), Diligent()
    asyncio.run(_serve(Settings(data_dir=tmp_path, port=0), first, second, reload=True))
    assert (first.hastened, second.hastened) == (1, 1)
