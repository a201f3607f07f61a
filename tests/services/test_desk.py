"""The desk: what is shown of a cache whose nodes are not yet what is wanted of them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.test_switching import enabled
from tests.services.rig import SETTINGS

from cachekeep.cli.chaos import _chosen
from cachekeep.clock import SystemClock
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import Unusable
from cachekeep.metrics.series import Archive
from cachekeep.model import Cache, Decided, Node, Secret, Wanted
from cachekeep.security.certs import Authorities
from cachekeep.security.sealing import Sealing
from cachekeep.services.core.context import Context
from cachekeep.services.desk import FailoverAsked, failover_of, rotated
from cachekeep.services.desk import shown as show
from cachekeep.wire.faults import ApiError


def cache(**wanted: Any) -> Cache:
    """Two nodes of Valkey 8.0 on cache.t3.micro, of which something else is wanted."""
    node = Node(
        name="c-001",
        shard="0001",
        zone="z",
        address="127.77.0.1",
        port=6379,
        engine="valkey",
        version="8.0",
        node_type="cache.t3.micro",
    )
    return Cache(
        uid="u",
        name="c",
        kind="group",
        region="r",
        created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        wanted=replace(Wanted(engine="valkey", version="8.0", node_type="cache.t3.micro", port=6379, shards=()), **wanted),
        decided=Decided(nodes=(node, replace(node, name="c-002", address="127.77.0.2"))),
    )


def test_nothing_is_pending_where_the_nodes_are_as_wanted() -> None:
    shown = show(cache(), None)
    assert (shown["engine"], shown["version"], shown["node_type"], shown["pending"]) == ("valkey", "8.0", "cache.t3.micro", [])


def test_what_waits_for_the_window_is_not_shown_as_if_it_ran() -> None:
    shown = show(cache(version="9.0", deferred=frozenset({"version"})), None)
    assert (shown["engine"], shown["version"]) == ("valkey", "8.0")
    assert shown["pending"] == [{"what": "engine", "from": "valkey 8.0", "to": "valkey 9.0", "in_window": True}]


def test_a_change_is_pending_until_the_last_node_has_it() -> None:
    asked = cache(node_type="cache.m7g.large")
    first, second = asked.decided.nodes
    half = replace(asked, decided=replace(asked.decided, nodes=(replace(first, node_type="cache.m7g.large"), second)))
    shown = show(half, None)
    assert shown["node_type"] == "cache.t3.micro"
    assert shown["pending"] == [{"what": "node_type", "from": "cache.t3.micro", "to": "cache.m7g.large", "in_window": False}]


def test_before_there_are_nodes_the_wanted_ones_areshow() -> None:
    shown = show(replace(cache(version="9.0"), decided=Decided()), None)
    assert (shown["version"], shown["pending"]) == ("9.0", [])


def test_a_node_in_cluster_mode_is_found_by_the_name_of_its_member_too() -> None:
    """Since the group was switched, ``demo-001`` is the process ``demo-001.cluster``."""
    cache = enabled()
    cache = replace(cache, decided=replace(cache.decided, switch=None))
    shown = show(cache, None)
    first, *_ = shown["nodes"]
    assert (first["name"], first["member"]) == ("demo-001.cluster", "demo-001")
    assert _chosen(shown, "demo-002")["name"] == "demo-002.cluster"
    assert _chosen(shown, "demo-002.cluster")["name"] == "demo-002.cluster"
    with pytest.raises(Unusable, match="demo has no node demo-009"):
        _chosen(shown, "demo-009")
    (errand,), told = failover_of(cache, FailoverAsked(name="demo", to="demo-002"))
    assert (errand.nodes, told) == (("demo-002",), "demo-002.cluster is to lead shard 0001")


def test_a_password_is_added_once_and_what_nobody_uses_goes() -> None:
    sealing = Sealing(bytes(32))
    context = Context(SETTINGS, Catalogue(), SystemClock(), sealing, Authorities((), sealing), Archive())
    before = cache(credentials=tuple(context.sealing.credential("u", serial, Secret("old")) for serial in (3, 4)))
    before = replace(before, decided=replace(before.decided, credential=4))
    wanted = rotated(before, Secret("new"), context)
    assert [c.serial for c in wanted.credentials] == [4, 5]
    assert "new" not in repr(wanted)
    after = replace(before, wanted=wanted)
    assert rotated(after, Secret("newer"), context) == wanted, "asked already"
    on_its_way_out = replace(after, decided=replace(after.decided, credential=5, other_credential=4))
    assert [c.serial for c in rotated(on_its_way_out, Secret("newer"), context).credentials] == [4, 5, 6]
    done = replace(after, decided=replace(after.decided, credential=5))
    assert context.sealing.password_of(done) == Secret("new")
    for refused in ({"engine": "memcached"}, {"deleted": True}):
        with pytest.raises(ApiError, match=r"no users|being deleted"):
            rotated(replace(before, wanted=replace(before.wanted, **refused)), Secret("new"), context)
