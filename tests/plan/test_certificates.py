"""A certificate names every address, is there before a process is, and is another when it has to be."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import ADDRESSES, MOMENT, NOW, group, healthy, running, step

from cachekeep.engines.runtime import runtime
from cachekeep.model import Act, Apply, Cache, Certificate, Decide, Start, View, Wait
from cachekeep.plan import plan
from cachekeep.plan.nodes.certificates import LIFETIME, RENEWED_BEFORE, rotate
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.plan.situation import Policy, Situation

DAY = dt.timedelta(days=1)


def encrypted(count: int = 3, **wanted: Any) -> Cache:
    """A group with TLS, all of it decided and told."""
    cache = group(count, transit="required", authorities=("old",), **wanted)
    return issued(cache)


def issued(cache: Cache, now: dt.datetime = NOW) -> Cache:
    found = plan(cache, healthy(cache), now, MOMENT)
    assert isinstance(found, Decide), found
    assert found.decided.certificate is not None
    return replace(cache, decided=found.decided)


def test_it_is_decided_before_a_process_starts_and_names_everything() -> None:
    cache = group(3, settled=False, transit="required", authorities=("old", "new"))
    cache = replace(cache, decided=plan(cache, View(free_addresses=ADDRESSES), NOW, MOMENT).decided)  # type: ignore[union-attr]
    view = View()
    found = plan(cache, view, NOW, MOMENT)
    assert isinstance(found, Decide)
    certificate, used = found.decided.certificate, addresses_used(cache.decided)
    assert certificate == Certificate(
        serial=1,
        authority="new",
        trusted=("old", "new"),
        names=tuple(sorted(used | {"demo", "demo-001", "demo-002", "demo-003"})),
        issued_at=NOW,
        expires_at=NOW + LIFETIME,
    )
    assert len(used) == 5, "three nodes and two endpoints"
    assert found.decided.transit == "required"
    started = plan(replace(cache, decided=found.decided), healthy(cache, demo_001=None), NOW, MOMENT)
    assert not isinstance(started, Decide)


def test_without_tls_there_is_none() -> None:
    cache = group(3)
    assert cache.decided.certificate is None
    assert runtime(cache, cache.decided.nodes[0]).tls is None
    assert "tls" not in runtime(cache, cache.decided.nodes[0]).digests


@pytest.mark.parametrize(("before", "renewed"), [(RENEWED_BEFORE + DAY, False), (RENEWED_BEFORE, True), (-DAY, True)])
def test_it_is_renewed_before_it_ends(before: dt.timedelta, renewed: bool) -> None:
    cache = encrypted()
    now = NOW + LIFETIME - before
    found = plan(cache, healthy(cache), now, MOMENT)
    assert isinstance(found, Decide) is renewed
    if isinstance(found, Decide):
        assert found.decided.certificate is not None
        assert (found.decided.certificate.serial, found.decided.certificate.issued_at) == (2, now)
        assert "ends on 2030-04-02" in found.because


def test_a_node_more_and_all_get_another() -> None:
    cache = encrypted(2)
    more = encrypted(3)
    wider = replace(cache, wanted=more.wanted, decided=replace(more.decided, certificate=cache.decided.certificate))
    found = plan(wider, healthy(wider), NOW, MOMENT)
    assert isinstance(found, Decide)
    assert found.decided.certificate is not None
    assert "demo-003" in found.decided.certificate.names
    assert "other" in found.because


def test_those_that_run_are_told_of_another_and_nothing_else() -> None:
    before = encrypted()
    after = issued(before, NOW + LIFETIME)
    told = {n.name.replace("-", "_"): running(after, n.name, digests=runtime(before, n).digests) for n in before.decided.nodes}
    found = step(after, healthy(after, **told))
    assert isinstance(found, Act)
    assert found.stages == ((Apply("demo-002", ("tls",)), Apply("demo-003", ("tls",))), (Apply("demo-001", ("tls",)),))
    assert found.because == "demo-001, demo-002 and demo-003 get another certificate"
    assert not any(isinstance(e, Start) for stage in found.stages for e in stage)


def told(of: Cache, then: Cache, *names: str) -> View:
    """These nodes run with what was decided then, all others with what is decided."""
    digests = {n.name: runtime(then, n).digests for n in then.decided.nodes if n.name in names}
    return healthy(of, **{name.replace("-", "_"): running(of, name, digests=d) for name, d in digests.items()})


def test_the_way_from_one_authority_to_another() -> None:
    """At each step whoever has not been told yet and whoever has believe each other."""
    cache = encrypted()
    cache = replace(cache, wanted=replace(cache.wanted, authorities=("old", "new")))
    way = [("old", ("old",))]
    for _ in range(3):
        before = cache
        cache = issued(cache)
        assert cache.decided.certificate is not None
        way.append((cache.decided.certificate.authority, cache.decided.certificate.trusted))
        waits = rotate(Situation(cache, told(cache, before, "demo-002"), NOW, MOMENT, Policy()))
        if cache.decided.certificate.trusted[0] == "old":
            assert isinstance(waits, Wait)
            assert waits.about == ("demo-002",)
    assert way == [("old", ("old",)), ("old", ("old", "new")), ("new", ("old", "new")), ("new", ("new", "old"))]
    assert not isinstance(step(cache, healthy(cache)), Decide), "until the old one is retired"
    cache = issued(replace(cache, wanted=replace(cache.wanted, authorities=("new",))))
    assert cache.decided.certificate is not None
    assert (cache.decided.certificate.authority, cache.decided.certificate.trusted) == ("new", ("new",))
    assert not isinstance(step(cache, healthy(cache)), Decide)
    way.append(("new", ("new",)))
    for (shown, trusting), (shown_then, trusting_then) in itertools.pairwise(way):
        assert {shown, shown_then} <= set(trusting) & set(trusting_then) or shown == shown_then
