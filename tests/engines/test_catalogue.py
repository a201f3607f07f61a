"""Which build serves which version: the rules as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cachekeep.engines import catalogue
from cachekeep.engines.catalogue import OFFERS, Build, Catalogue, numbers, offer_of
from cachekeep.errors import CachekeepError, EngineMissing, InvalidCombination, InvalidValue


def build(name: str, *, tls: bool = True) -> Build:
    engine, _, version = name.partition("-")
    return Build(
        engine=engine,  # type: ignore[arg-type]
        version=version,
        server=f"/builds/{name}/{engine}",
        tls=tls,
        capabilities=catalogue.capabilities_of(engine, version),
    )


def installed(*names: str) -> Catalogue:
    """A catalogue of builds named like ``valkey-9.1.2``; a trailing ``!`` means without TLS."""
    return Catalogue(tuple(build(name.rstrip("!"), tls=not name.endswith("!")) for name in names))


@pytest.mark.parametrize(
    ("builds", "engine", "asked", "served_by"),
    [
        ("valkey-8.0.1 valkey-8.0.4 valkey-8.1.1", "valkey", "8.0", "8.0.4"),  # the newest patch of the minor
        ("valkey-8.1.1 valkey-8.2.0", "valkey", "8.0", "8.1.1"),  # else the nearest newer of the family
        ("valkey-9.1.2", "valkey", "9.0", "9.1.2"),
        ("valkey-9.1.2! valkey-9.1.1", "valkey", "9.1", "9.1.1"),  # TLS before a newer patch
        ("valkey-9.1.1! valkey-9.1.0", "valkey", "9.1", "9.1.1"),  # but no grave hole for it
        ("valkey-9.0.0 valkey-9.1.2!", "valkey", "9.1", "9.1.2"),  # but never an older minor
        ("redis-6.2.5 redis-7.0.15", "redis", "6.x", "6.2.5"),
        ("redis-6.2.5", "redis", "6.0", "6.2.5"),
        ("redis-7.0.15", "redis", "7.1", "7.0.15"),  # 7.1 is AWS's own 7.0
        ("redis-7.0.15 redis-7.2.4", "redis", "7.1", "7.0.15"),
        ("redis-7.2.4", "redis", "7.0", "7.2.4"),
        ("memcached-1.6.18 memcached-1.6.22", "memcached", "1.6.22", "1.6.22"),
        ("memcached-1.6.18 memcached-1.6.40", "memcached", "1.6.17", "1.6.40"),
    ],
)
def test_the_build_that_serves_a_version(builds: str, engine: str, asked: str, served_by: str) -> None:
    assert installed(*builds.split()).resolve(engine, asked).version == served_by


@pytest.mark.parametrize(
    ("builds", "engine", "asked", "needs", "hint"),
    [
        ("", "valkey", "8.0", (), "valkey@8.1"),
        ("valkey-8.0.1", "valkey", "8.1", (), "valkey@8.1"),  # older never serves newer
        ("valkey-9.1.2", "valkey", "8.2", (), "cannot be built"),  # nor another family
        ("valkey-7.2.6", "redis", "7.0", (), "redis@7.0"),  # nor another engine
        ("redis-7.4.1 redis-8.0.2", "redis", "7.1", (), "redis@7.0"),  # nor what ElastiCache never had
        ("memcached-1.6.18", "memcached", "1.6.22", (), "memcached@1.6"),
        (
            "valkey-9.1.2!",
            "valkey",
            "9.1",
            ("tls",),
            "with TLS (installed builds of valkey: 9.1.2 without TLS). To get one: `cachekeep engines install valkey@9.1`.",
        ),
        ("valkey-8.0.1", "valkey", None, ("atomic-slot-migration",), "with atomic-slot-migration"),
    ],
)
def test_no_build_serves_it_and_the_error_says_how_to_get_one(
    builds: str, engine: str, asked: str | None, needs: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(EngineMissing) as refusal:
        installed(*builds.split()).resolve(engine, asked, needs)
    assert hint in str(refusal.value)
    assert ("cachekeep engines install" in str(refusal.value)) is ("cannot be built" not in hint)


@pytest.mark.parametrize(
    ("engine", "asked", "kind", "message"),
    [
        ("redis", "7.0.7", InvalidValue, "Specific version selection is not allowed for '7.0.7', please use '7.0'"),
        (
            "redis",
            "4.0.13",
            InvalidCombination,
            "Cannot find version 4.0.13 for redis: there are 4.0.10, 5.0.6, 6.0, 6.2, 7.0, 7.1",
        ),
        (
            "valkey",
            "6.x",
            InvalidCombination,
            "Cannot find version 6.x for valkey: there are 7.2, 8.0, 8.1, 8.2, 9.0, 9.1",
        ),
        ("valkey", "", InvalidCombination, "Cannot find version  for valkey: there are 7.2, 8.0, 8.1, 8.2, 9.0, 9.1"),
        (
            "memcached",
            "1.6",
            InvalidCombination,
            "Cannot find version 1.6 for memcached: there are 1.4.5, 1.4.14, 1.4.24, 1.4.33, 1.4.34, 1.5.10, 1.5.16, "
            "1.6.6, 1.6.12, "
            "1.6.17, 1.6.22",
        ),
    ],
)
def test_versions_that_elasticache_never_had_are_refused_in_its_words_with_those_that_it_has(
    engine: str, asked: str, kind: type[CachekeepError], message: str
) -> None:
    with pytest.raises(kind) as refusal:
        installed("redis-7.0.15").choose(engine, asked)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("builds", "default"),
    [
        ("valkey-8.0.13 valkey-9.1.2!", "8.0"),  # whole builds first: encryption must be there when it is asked for
        ("valkey-8.0.13 valkey-9.1.2", "9.1"),
        ("valkey-9.1.2!", "9.1"),
        ("valkey-8.0.1 valkey-9.1.2!", "9.1"),  # but never one with a grave hole, where there is another
        ("valkey-8.0.13 valkey-9.1.0", "8.0"),
        ("valkey-8.0.1! valkey-8.1.3", "8.1"),  # where there is no other, as ever
    ],
)
def test_the_default_version_is_the_newest_whole_and_safe_one(builds: str, default: str) -> None:
    here = installed(*builds.split())
    assert here.choose("valkey")[0].version == default
    assert [entry.offer.version for entry in here.versions(engine="valkey", default_only=True)] == [default]


def test_only_versions_with_a_build_are_listed() -> None:
    here = installed("redis-7.0.15", "valkey-8.0.13", "memcached-1.6.18")
    memcached = f"memcached version 1.6.18 (open to every client: {', '.join(build('memcached-1.6.18').open_to_clients)})"
    assert [(entry.offer.engine, entry.offer.version, entry.version_description) for entry in here.versions()] == [
        ("memcached", "1.6.6", memcached),
        ("memcached", "1.6.12", memcached),
        ("memcached", "1.6.17", memcached),
        ("redis", "7.0", f"redis version 7.0.15 ({build('redis-7.0.15').warning})"),
        ("redis", "7.1", f"redis version 7.0.15 ({build('redis-7.0.15').warning})"),
        ("valkey", "8.0", "valkey version 8.0.13"),
    ]
    assert [entry.offer.version for entry in here.versions(family="redis7")] == ["7.0", "7.1"]
    assert [entry.offer.version for entry in here.versions(engine="redis", version="7.1")] == ["7.1"]
    assert here.versions(version="9.9") == []
    assert installed().versions() == []


BUILDS = st.sampled_from(
    [
        *("valkey-7.2.6", "valkey-8.0.1", "valkey-8.1.4!", "valkey-9.0.1", "valkey-9.1.2!"),
        *("redis-6.0.16", "redis-6.2.5!", "redis-7.0.15", "redis-7.2.4", "redis-8.0.2"),
        *("memcached-1.4.34", "memcached-1.6.18", "memcached-1.6.40"),
    ]
)


@given(st.lists(BUILDS, unique=True), st.sampled_from(OFFERS), st.sampled_from([(), ("tls",), ("functions",)]))
def test_what_serves_is_of_the_family_and_never_older(names: list[str], offer: catalogue.Offer, needs: tuple[str, ...]) -> None:
    here = installed(*names)
    found = here.serving(offer, needs)
    if found is None:
        assert needs or offer not in [entry.offer for entry in here.versions()]
        return
    assert (found.engine, found.family) == (offer.engine, offer.family)
    assert found.numbers >= offer.needs
    assert found.can(*needs)


def test_capabilities_follow_the_version() -> None:
    assert build("valkey-9.0.0").can("atomic-slot-migration", "dual-channel-replication")
    assert not build("valkey-8.1.9").can("atomic-slot-migration")
    assert build("redis-6.2.0").can("failover-command", "acl")
    assert not build("redis-6.0.20").can("failover-command")
    assert not build("redis-7.2.4").can("dual-channel-replication")
    assert not build("valkey-9.1.2", tls=False).can("tls")


def test_families_are_those_of_the_parameter_groups() -> None:
    assert {offer.family for offer in OFFERS} == {
        *("memcached1.4", "memcached1.5", "memcached1.6", "redis4.0", "redis5.0"),
        *("redis6.x", "redis7", "valkey7", "valkey8", "valkey9"),
    }
    assert offer_of("redis", "6.x").version == "6.2"


def test_offers_are_listed_oldest_first() -> None:
    for engine in catalogue.ENGINES:
        versions = [numbers(offer.version) for offer in OFFERS if offer.engine == engine]
        assert versions == sorted(versions)


@pytest.mark.parametrize(("preloaded", "left"), [("", "slabs, lru, verbosity"), ("/x/lib.so", "lru_crawler")])
def test_what_memcached_leaves_open_is_named(preloaded: str, left: str) -> None:
    one = replace(build("memcached-1.6.18"), preload=preloaded)
    [listed] = Catalogue((one,)).versions("memcached", "1.6.17")
    assert listed.version_description.endswith(f"{left})")
    assert "open to every client: cache_memlimit, flush_all, watch" in listed.version_description
    assert "open to" not in installed("valkey-9.1.2").versions("valkey", "9.1")[0].version_description


@pytest.mark.parametrize(
    ("builds", "to_build"),
    [
        ("", "valkey"),
        ("valkey-9.1.2!", "valkey"),  # safe, without TLS
        ("valkey-8.0.1 valkey-9.1.2!", "valkey"),  # and one with TLS and grave holes
        ("valkey-9.1.2", None),
        ("valkey-8.1.9 valkey-8.0.1", None),
        ("redis-7.2.11", "valkey"),
    ],
)
def test_what_is_built_in_the_background(builds: str, to_build: str | None) -> None:
    assert installed(*builds.split()).to_build == to_build
