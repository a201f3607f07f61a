"""A store that cannot be had: requests are answered with what every SDK tries again by itself, and nothing was changed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config
from tests.services.rig import Rig, SetClock, refused

from cachekeep.errors import Conflict
from cachekeep.sim.store import AilingStore, Ailment
from cachekeep.store import MemoryStore
from cachekeep.store.contract import Transaction

WANTED: dict[str, Any] = {
    "CacheClusterId": "mc",
    "Engine": "memcached",
    "CacheNodeType": "cache.t3.micro",
    "NumCacheNodes": 1,
}


class Contended(AilingStore):
    """Somebody else is always faster, if so told."""

    contended = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with super().transaction() as tx:
            yield tx
            if self.contended:
                raise Conflict("changed by somebody else")


@pytest.fixture
def ailment() -> Ailment:
    return Ailment()


@pytest.fixture
def store(ailment: Ailment) -> Contended:
    return Contended(MemoryStore(SetClock()), ailment, random.Random(1))


@pytest.fixture
def rig(store: Contended) -> Iterator[Rig]:
    rig = Rig(store=store)
    yield rig
    rig.close()


def client(rig: Rig, *, mode: str = "standard", tries: int = 1) -> Any:
    """boto3, trying so often."""
    found = boto3.client(
        "elasticache",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:8379",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"mode": mode, "total_max_attempts": tries}),
    )
    found.meta.events.register("before-send", rig._send)
    return found


@pytest.mark.parametrize("trouble", [Ailment(full=True), Ailment(gone=True)], ids=["full", "gone"])
def test_a_change_is_refused_for_now_and_nothing_was_changed(rig: Rig, ailment: Ailment, trouble: Ailment) -> None:
    vars(ailment).update(vars(trouble))
    error = refused(client(rig).create_cache_cluster, **WANTED)
    assert (error.code, error.status) == ("ServiceUnavailable", 503)
    assert "nothing was changed" in error.message
    vars(ailment).update(vars(Ailment()))
    assert rig.cache.describe_cache_clusters()["CacheClusters"] == []
    rig.cache.create_cache_cluster(**WANTED)


def test_what_cannot_be_read_is_not_said_to_be_missing(rig: Rig, ailment: Ailment) -> None:
    rig.cache.create_cache_cluster(**WANTED)
    ailment.gone = True
    for call, params in ((client(rig).describe_cache_clusters, {"CacheClusterId": "mc"}), (client(rig).describe_events, {})):
        error = refused(call, **params)
        assert (error.code, error.status) == ("ServiceUnavailable", 503)
        assert "cannot be read" in error.message


def test_where_nobody_can_know_that_is_said(rig: Rig, ailment: Ailment) -> None:
    ailment.unsure = 1.0
    error = refused(client(rig).create_cache_cluster, **WANTED)
    assert (error.code, error.status) == ("ServiceUnavailable", 503)
    assert "may have been made, or not" in error.message


def test_losing_to_others_again_and_again_is_to_be_tried_again(rig: Rig, store: Contended) -> None:
    store.contended = True
    error = refused(client(rig).create_cache_cluster, **WANTED)
    assert (error.code, error.status) == ("ServiceUnavailable", 503)
    assert "Nothing was changed" in error.message
    store.contended = False
    assert rig.cache.describe_cache_clusters()["CacheClusters"] == []


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_an_sdk_tries_again_by_itself(rig: Rig, ailment: Ailment, mode: str) -> None:
    cache = client(rig, mode=mode, tries=3)
    ailment.full = True
    tried: list[str] = []

    def count(**_: Any) -> None:
        tried.append(mode)
        ailment.full = len(tried) < 2

    cache.meta.events.register_first("before-send", count)
    cache.create_cache_cluster(**WANTED)
    assert len(tried) == 2
