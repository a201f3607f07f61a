"""What the command line is told beside what is stored: what this machine cannot do for the caches that there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cachekeep.compute.local import clients
from cachekeep.engines.catalogue import Catalogue
from cachekeep.web.desk import Desk
from cachekeep.wire.gateway import Call

pytestmark = pytest.mark.anyio


class Stored:
    """Services that know caches of these engines."""

    def __init__(self, *engines: str) -> None:
        self._engines = engines

    async def dispatch(self, call: Any) -> Mapping[str, Any]:
        return {"caches": [{"engine": engine} for engine in self._engines]}


async def lacks(*engines: str) -> Any:
    anything = cast(Any, None)
    desk = Desk(
        services=cast(Any, Stored(*engines)),
        observer=anything,
        clock=anything,
        policy=anything,
        version="1",
        catalogue=Catalogue,
        reload=anything,
        lacks=clients.lacks,
    )
    asked = cast(Call, SimpleNamespace(operation="status"))
    return (await desk.answer(asked))["lacks"]


async def test_status_says_that_clients_of_a_cut_node_wait_where_nothing_can_end_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ss
    for engines in (("valkey",), ("memcached", "redis")):
        (said,) = await lacks(*engines)
        assert said.startswith("Clients of a node that is cut off wait for their own timeouts: ")
    assert await lacks("memcached") == (), "nothing succeeds a node of memcached"
    assert await lacks() == ()
