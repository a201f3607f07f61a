"""Every operation of every service passes one place before its handler sees it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace
from tests.services.rig import CATALOGUE, SETTINGS, Rig, SetClock, refused

from cachekeep.security.sealing import Sealing
from cachekeep.services import SERVICES, Services
from cachekeep.services.core import dispatch
from cachekeep.store import MemoryStore
from cachekeep.wire.caller import Principal
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(call: Call, *rest: Any) -> None:
        raise ApiError("AccessDenied", f"{call.principal.arn} may not {call.service}:{call.operation}", status=403)

    monkeypatch.setattr(dispatch, "authorise", nobody)


@pytest.mark.usefixtures("strict")
async def test_no_handler_is_reached_past_it() -> None:
    clock = SetClock()
    store = MemoryStore(clock)
    services = Services(
        [replace(s, prepare=lambda call: call) for s in SERVICES], store, CATALOGUE, SETTINGS, clock, Sealing(bytes(32))
    )
    principal = Principal("AKIA", "arn:aws:iam::000000000000:user/guest", "000000000000")
    for service in SERVICES:
        for name in service.operations:
            call = Call(service.name, name, {}, principal, "us-east-1", "id", dt.datetime.now(dt.UTC), None)
            with pytest.raises(ApiError) as caught:
                await services.dispatch(call)
            assert (name, caught.value.code) == (name, "AccessDenied")
    services.close()
    await store.aclose()


@pytest.mark.usefixtures("strict")
def test_who_is_refused_has_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    asked = {"CacheClusterId": "mc", "CacheNodeType": "cache.t3.micro", "Engine": "memcached", "NumCacheNodes": 1}
    error = refused(rig.cache.create_cache_cluster, **asked)
    assert (error.code, error.status) == ("AccessDenied", 403)
    monkeypatch.undo()
    assert rig.cache.describe_cache_clusters()["CacheClusters"] == []
    rig.close()
