"""Django's own middleware and auth over the session engine, and Django's cache over the backend."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import threading
import uuid
import zoneinfo
from collections.abc import Iterator
from typing import Any

import pytest
import valkey

django = pytest.importorskip("django")

from django.conf import settings  # noqa: E402

if not settings.configured:
    settings.configure(
        SECRET_KEY="k" * 40,
        SECRET_KEY_FALLBACKS=[],
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        USE_TZ=True,
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE="cachekeep_patterns.contrib.django.sessions",
        CACHEKEEP_SESSIONS={"LOCATION": "valkey://127.0.0.1:1"},
    )
    django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from django.contrib.auth import get_user_model  # noqa: E402
from django.contrib.sessions.backends.base import UpdateError  # noqa: E402
from django.contrib.sessions.exceptions import SessionInterrupted  # noqa: E402
from django.db.models import IntegerChoices, TextChoices  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils.safestring import mark_safe  # noqa: E402
from django.utils.translation import gettext_lazy  # noqa: E402
from django.views.decorators.cache import cache_page  # noqa: E402

from cachekeep_patterns.contrib.django import cache as cache_module  # noqa: E402
from cachekeep_patterns.contrib.django import codec  # noqa: E402
from cachekeep_patterns.contrib.django import sessions as engine_module  # noqa: E402
from cachekeep_patterns.contrib.django.cache import ValkeyCache  # noqa: E402
from cachekeep_patterns.contrib.django.sessions import SessionStore  # noqa: E402
from cachekeep_patterns.errors import LockBusy  # noqa: E402
from patterns_rig.session_engines import Engine, wait_for  # noqa: E402

gate = threading.Barrier(1)


def read(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dict(request.session.items()))


def write(request: HttpRequest, name: str, value: str) -> HttpResponse:
    request.session[name] = value
    return HttpResponse("ok")


def race(request: HttpRequest, name: str) -> HttpResponse:
    request.session.get("x")
    gate.wait()
    request.session[name] = 1
    return HttpResponse("ok")


def log_in(request: HttpRequest, user: str) -> HttpResponse:
    """What django.contrib.auth.login does to a session, without its database."""
    if request.session.get("_auth_user_id", user) != user:
        request.session.flush()
    else:
        request.session.cycle_key()
    request.session["_auth_user_id"] = user
    return HttpResponse("ok")


def log_out(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse("ok")


async def aread(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dict(await request.session.aitems()))


async def awrite(request: HttpRequest, name: str, value: str) -> HttpResponse:
    await request.session.aset(name, value)
    return HttpResponse("ok")


async def alog_in(request: HttpRequest, user: str) -> HttpResponse:
    await request.session.acycle_key()
    await request.session.aset("_auth_user_id", user)
    return HttpResponse("ok")


async def alog_out(request: HttpRequest) -> HttpResponse:
    await request.session.aflush()
    return HttpResponse("ok")


urlpatterns = [
    path("", read),
    path("write/<name>/<value>", write),
    path("race/<name>", race),
    path("login/<user>", log_in),
    path("logout", log_out),
    path("a/", aread),
    path("a/write/<name>/<value>", awrite),
    path("a/login/<user>", alog_in),
    path("a/logout", alog_out),
]


@pytest.fixture(autouse=True)
def configured(server: Engine) -> Iterator[None]:
    where = f"valkey://{server.address}:{server.port}/0"
    engine_module._clients.cache_clear()
    engine_module._policy.cache_clear()
    with override_settings(CACHEKEEP_SESSIONS={"LOCATION": where}):
        yield


def test_the_session_comes_and_goes(client: valkey.Valkey) -> None:
    web = Client()
    assert not web.get("/").cookies
    assert client.dbsize() == 0
    morsel = web.get("/write/a/1").cookies["sessionid"]
    assert morsel["httponly"]
    assert web.get("/").json() == {"a": "1"}
    web.get("/logout")
    assert web.get("/").json() == {}
    assert client.dbsize() == 0


@pytest.mark.parametrize("requests", [2, 20])
def test_concurrent_requests_lose_nothing(requests: int) -> None:
    global gate
    web = Client()
    web.get("/write/start/1")
    gate = threading.Barrier(requests)

    def request(number: int) -> None:
        one = Client()
        one.cookies["sessionid"] = web.cookies["sessionid"].value
        assert one.get(f"/race/k{number}").status_code == 200

    threads = [threading.Thread(target=request, args=(number,)) for number in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web.get("/").json() == {"start": "1", **{f"k{number}": 1 for number in range(requests)}}


def test_login_changes_the_key_and_keeps_the_data() -> None:
    web = Client()
    web.get("/write/a/1")
    before = web.cookies["sessionid"].value
    web.get("/login/7")
    assert web.cookies["sessionid"].value != before
    assert web.get("/").json() == {"a": "1", "_auth_user_id": "7"}
    thief = Client()
    thief.cookies["sessionid"] = before
    assert thief.get("/").json() == {}
    web.get("/login/8")
    assert web.get("/").json() == {"_auth_user_id": "8"}


def test_log_out_everywhere() -> None:
    browsers = [Client() for _ in range(3)]
    for web, user in zip(browsers, "778", strict=True):
        web.get(f"/login/{user}")
    assert len(engine_module.store().sessions_of("7")) == 2
    assert engine_module.store().logout_everywhere("7") == 2
    assert [web.get("/").json() for web in browsers] == [{}, {}, {"_auth_user_id": "8"}]


def test_a_late_save_gets_djangos_own_answer() -> None:
    web = Client()
    web.get("/login/7")
    late = SessionStore(web.cookies["sessionid"].value)
    late["a"] = 1
    web.get("/logout")
    with pytest.raises(UpdateError):
        late.save()
    late = SessionStore(web.cookies["sessionid"].value)
    assert late.is_empty()


def test_a_request_in_flight_at_a_login_does_not_bring_the_old_cookie_back() -> None:
    web = Client()
    web.get("/write/a/1")
    late = SessionStore(web.cookies["sessionid"].value)
    late["b"] = 1
    web.get("/login/7")
    with pytest.raises(UpdateError):
        late.save()


def test_a_session_that_was_logged_out_is_not_carried_over_to_a_new_key() -> None:
    """A password change rotates; the user has logged out beside it."""
    web = Client()
    web.get("/login/7")
    beside = SessionStore(web.cookies["sessionid"].value)
    assert beside["_auth_user_id"] == "7"
    web.get("/logout")
    with pytest.raises(SessionInterrupted):
        beside.cycle_key()


def test_an_anonymous_session_that_vanished_may_be_logged_in(client: valkey.Valkey) -> None:
    session = SessionStore()
    session["a"] = 1
    session.save()
    client.flushall()
    session.cycle_key()
    assert dict(SessionStore(session.session_key).items()) == {"a": 1}


def test_clearing_a_session_that_ended_does_not_revive_it() -> None:
    session = SessionStore()
    session["a"] = 1
    session.save()
    late = SessionStore(session.session_key)
    session.delete()
    late.clear()
    late["b"] = 1
    with pytest.raises(UpdateError):
        late.save()


def test_a_request_over_a_session_that_ends_is_a_400() -> None:
    global gate
    web = Client()
    web.get("/login/7")
    gate = threading.Barrier(2)
    answers: list[int] = []
    other = Client()
    other.cookies["sessionid"] = web.cookies["sessionid"].value
    thread = threading.Thread(target=lambda: answers.append(other.get("/race/late").status_code))
    thread.start()
    wait_for(lambda: gate.n_waiting == 1, "the late request's arrival")
    web.get("/logout")
    gate.wait()
    thread.join()
    assert answers == [400]


def test_keys_that_we_did_not_sign_are_nothing() -> None:
    web = Client()
    web.get("/write/a/1")
    signed = web.cookies["sessionid"].value
    for forged in (signed[:-1], signed[:44], "a" * 32, signed + "x"):
        assert not SessionStore().exists(forged)
        thief = Client()
        thief.cookies["sessionid"] = forged
        assert thief.get("/").json() == {}
    assert SessionStore().exists(signed)
    with override_settings(SECRET_KEY="n" * 40, SECRET_KEY_FALLBACKS=["k" * 40]):
        assert SessionStore().exists(signed)
    with override_settings(SECRET_KEY="n" * 40):
        assert not SessionStore().exists(signed)


def test_expiry_is_djangos(client: valkey.Valkey) -> None:
    session = SessionStore()
    session["a"] = 1
    session.set_expiry(50)
    session.save()
    (key,) = client.keys("session:*")
    assert client.pttl(key) <= 50_000
    again = SessionStore(session.session_key)
    again.set_expiry(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=500))
    again.save()
    assert 400_000 < client.pttl(key) <= 500_000
    again.set_expiry(-1)
    again.save()
    assert client.dbsize() == 0


def test_clear_without_loading_clears() -> None:
    session = SessionStore()
    session["a"] = 1
    session.save()
    again = SessionStore(session.session_key)
    again.clear()
    again["b"] = 2
    again.save()
    assert dict(SessionStore(session.session_key).items()) == {"b": 2}


def test_create_makes_an_empty_session_under_a_key_of_its_own() -> None:
    session = SessionStore("a" * 40)
    session.create()
    assert session.session_key != "a" * 40
    assert SessionStore().exists(session.session_key)
    assert session.modified


async def test_the_async_half(server: Engine) -> None:
    web = AsyncClient()
    await web.get("/a/write/a/1")
    before = web.cookies["sessionid"].value
    await web.get("/a/login/7")
    assert web.cookies["sessionid"].value != before
    assert (await web.get("/a/")).json() == {"a": "1", "_auth_user_id": "7"}
    key = web.cookies["sessionid"].value
    one, two = SessionStore(key), SessionStore(key)
    await one.aset("b", 1)
    await two.aset("c", 2)
    await one.asave()
    await two.asave()
    assert await SessionStore().aexists(key)
    assert (await web.get("/a/")).json() == {"a": "1", "_auth_user_id": "7", "b": 1, "c": 2}
    await web.get("/a/logout")
    assert not await SessionStore().aexists(key)
    await one.aset("late", 1)
    with pytest.raises(UpdateError):
        await one.asave()


# The cache


@pytest.fixture
def cache(server: Engine) -> ValkeyCache:
    return ValkeyCache(f"valkey://{server.address}:{server.port}/0", {"TIMEOUT": 300})


PLAIN = [
    None, True, False, 0, 1, -(2**63), 2**63, 2**64, 10**40, 1.5, "", "ü", b"\x00", [], {}, [1, [2, {"a": None}]],
    (1, (2,)), {1, 2}, pytest.param(frozenset("ab"), id="frozenset"), {"t": (1, {2})}, {1: "int key", None: 1, b"b": 2},
    dt.datetime(2024, 2, 29, 1, 2, 3, 4), dt.datetime(2024, 2, 29, tzinfo=dt.UTC), dt.date(2024, 2, 29),
    dt.time(1, 2, 3), dt.timedelta(days=-1, microseconds=1), decimal.Decimal("1.10"), uuid.UUID(int=5),
    mark_safe("<b>"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_what_goes_in_comes_out(cache: ValkeyCache, value: Any) -> None:
    cache.set("key", value)
    got = cache.get("key", default="missing")
    assert got == value
    assert type(got) is type(value)


def test_a_rendered_response_is_cached() -> None:
    response = HttpResponse("body", status=201, headers={"X-A": "1", "Content-Type": "text/plain"})
    response.set_cookie("c", "v w", httponly=True, samesite="Lax", max_age=9)
    back = codec.decode(codec.encode(response))
    assert back.serialize() == response.serialize()
    assert back.cookies.output() == response.cookies.output()


def test_cache_page_works(server: Engine) -> None:
    calls: list[int] = []

    def view(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        return HttpResponse(f"{len(calls)}")

    where = f"valkey://{server.address}:{server.port}/0"
    backend = f"{cache_module.__name__}.ValkeyCache"
    with override_settings(CACHES={"default": {"BACKEND": backend, "LOCATION": where}}):
        from django.test import RequestFactory

        page = cache_page(60)(view)
        assert [page(RequestFactory().get("/x")).content for _ in range(3)] == [b"1", b"1", b"1"]


@pytest.mark.parametrize("value", [object(), lambda: 1, {(1, 2): 3}, type("S", (str,), {})("x")], ids=["o", "f", "k", "s"])
def test_what_cannot_come_back_the_same_is_refused(cache: ValkeyCache, value: Any) -> None:
    with pytest.raises(TypeError):
        cache.set("key", value)
    assert cache.get("key") is None


def test_the_cache_operations(cache: ValkeyCache, client: valkey.Valkey) -> None:
    assert cache.add("a", 1) is True
    assert cache.add("a", 2) is False
    assert cache.incr("a") == 2
    assert cache.decr("a", 5) == -3
    with pytest.raises(ValueError):
        cache.incr("missing")
    cache.set("text", "1")
    with pytest.raises(TypeError):
        cache.incr("text")
    assert cache.get("missing", "default") == "default"
    assert cache.set_many({"b": 1, "c": None}) == []
    assert cache.get_many(["a", "b", "c", "missing"]) == {"a": -3, "b": 1, "c": None}
    assert "c" in cache
    assert cache.get_or_set("c", 5) is None
    cache.delete_many(["b", "c"])
    assert cache.get_many([]) == {}
    assert cache.delete("a") is True
    assert cache.delete("a") is False
    assert client.keys("*") == [b"django::1:text"]


def test_timeouts(cache: ValkeyCache, client: valkey.Valkey) -> None:
    cache.set("default", 1)
    cache.set("forever", 1, timeout=None)
    cache.set("half", 1, timeout=0.5)
    assert 299_000 < client.pttl("django::1:default") <= 300_000
    assert client.pttl("django::1:forever") == -1
    assert client.pttl("django::1:half") <= 500
    cache.incr("default")
    assert client.pttl("django::1:default") > 0
    assert cache.touch("forever", 10) is True
    assert 0 < client.pttl("django::1:forever") <= 10_000
    assert cache.touch("forever", None) is True
    assert client.pttl("django::1:forever") == -1
    assert cache.touch("missing") is cache.touch("missing", None) is False
    cache.set("forever", 2, timeout=0)
    assert cache.touch("default", -1) is True
    assert cache.get_many(["forever", "default"]) == {}
    assert cache.add("zero", 1, timeout=0) is True
    assert cache.get("zero") is None


def test_versions_and_clear(cache: ValkeyCache, server: Engine, client: valkey.Valkey) -> None:
    where = f"valkey://{server.address}:{server.port}/0"
    shop = ValkeyCache(where, {"KEY_PREFIX": "sh*p"})
    other = ValkeyCache(where, {"KEY_PREFIX": "sharp"})
    client.set("somebody else's", 1)
    for each in (cache, shop, other):
        each.set_many({f"k{number}": number for number in range(1200)})
        each.set("k", "two", version=2)
    assert cache.incr_version("k0") == 2
    assert cache.get("k0", version=2) == 0
    shop.clear(version=1)
    assert shop.get("k1") is None
    assert shop.get("k", version=2) == "two"
    shop.clear()
    assert shop.get("k", version=2) is None
    assert other.get("k1") == 1
    cache.clear()
    assert client.keys("*") == [b"somebody else's"]


async def test_the_async_cache(cache: ValkeyCache) -> None:
    await cache.aset("a", 1)
    assert await cache.aadd("a", 2) is False
    assert await cache.aincr("a", 2) == 3
    assert await cache.adecr("a") == 2
    assert await cache.aget("a") == 2
    assert await cache.aset_many({"b": (1,), "c": 3}) == []
    assert await cache.aget_many(["b", "c", "d"]) == {"b": (1,), "c": 3}
    assert await cache.atouch("b", 5)
    assert await cache.ahas_key("b")
    assert await cache.aget_or_set("e", 5) == 5
    await cache.adelete_many(["b"])
    assert await cache.adelete("c")
    with pytest.raises(ValueError):
        await cache.aincr("missing")
    await cache.aclear()
    assert await cache.aget_many(["a", "b", "c", "e"]) == {}


def test_every_event_loop_has_its_own_connections(cache: ValkeyCache) -> None:
    cache.set("a", 1)
    assert [asyncio.run(cache.aget("a")) for _ in range(3)] == [1, 1, 1]


def test_the_cache_in_a_cluster(cluster: list[Engine]) -> None:
    where = f"valkey://{cluster[0].address}:{cluster[0].port}"
    cache = ValkeyCache(where, {"OPTIONS": {"cluster": True}})
    data = {f"k{number}": number for number in range(100)}
    cache.set_many(data)
    assert cache.get_many(data) == data
    assert cache.incr("k1") == 2
    assert all(node.client().dbsize() > 0 for node in cluster)

    async def asynchronously() -> None:
        assert len(await cache.aget_many(data)) == 100
        await cache.aclear()

    asyncio.run(asynchronously())
    assert cache.get_many(data) == {}
    cache.set_many(data)
    cache.clear()
    assert cache.get_many(data) == {}


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown OPTIONS: oops"):
        ValkeyCache("valkey://127.0.0.1", {"OPTIONS": {"oops": 1}})


class Size(TextChoices):
    SMALL = "s", gettext_lazy("small")


class Level(IntegerChoices):
    LOW = 1


def test_lazy_texts_and_choices(cache: ValkeyCache) -> None:
    for value, stored in ((gettext_lazy("hello"), "hello"), (Size.SMALL, "s"), (Level.LOW, 1), ([Size.SMALL.label], ["small"])):
        cache.set("key", value)
        assert cache.get("key") == stored == (value if not isinstance(value, list) else stored)
    cache.set("number", Level.LOW)
    assert cache.incr("number") == 2


def test_models_are_kept_where_that_was_asked_for(cache: ValkeyCache, server: Engine) -> None:
    user = get_user_model()(pk=7, username="ada", last_login=dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    with pytest.raises(TypeError, match=r"auth\.models\.User"):
        cache.set("user", user)
    models = ValkeyCache(f"valkey://{server.address}:{server.port}/0", {"OPTIONS": {"models": True}})
    models.set("users", [user])
    (got,) = models.get("users")
    assert (type(got), got.pk, got.username, got.last_login, got._state.adding) == (type(user), 7, "ada", user.last_login, True)
    partly = get_user_model().from_db("default", ["id"], [7])
    models.set("user", partly)
    assert models.get("user").get_deferred_fields() == partly.get_deferred_fields()


def test_a_zone_by_name_comes_back(cache: ValkeyCache) -> None:
    when = dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    cache.set("when", when)
    assert (cache.get("when"), cache.get("when").fold, cache.get("when").tzinfo) == (when, 1, when.tzinfo)


def test_damaged_bytes_are_a_miss(cache: ValkeyCache, client: valkey.Valkey) -> None:
    cache.set_many({"a": [1], "b": [2], "c": decimal.Decimal(1)})
    for damaged in (b"", b"\x01", b"\x01\xc1", b"\x80\x04N.", b"garbage", b"\x01\xc7\x01\x09x", b"\x01\xd4\x63\x00"):
        client.set(cache.make_key("a"), damaged)
        assert cache.get("a", "missing") == "missing"
        assert cache.get_many(["a", "b"]) == {"b": [2]}
        assert cache.get_or_set("a", lambda: "made") == "made"


def test_a_server_that_is_away_may_count_as_an_empty_one(caplog: pytest.LogCaptureFixture) -> None:
    options = {"ignore_exceptions": True, "deadline_seconds": 0, "client": {"socket_connect_timeout": 0.2}}
    away = ValkeyCache("valkey://127.0.0.1:1", {"OPTIONS": options})
    assert away.get("a", 5) == 5
    assert away.set("a", 1) is None
    assert away.get_or_set("a", lambda: 7) == 7
    assert (away.add("a", 1), away.touch("a"), away.delete("a"), "a" in away) == (False, False, False, False)
    assert (away.get_many(["a"]), away.set_many({"a": 1}), away.ttl("a"), away.delete_pattern("*")) == ({}, ["a"], 0, 0)
    assert away.clear() is None
    with pytest.raises(ValueError, match="not found"):
        away.incr("a")
    assert asyncio.run(away.aget("a", 5)) == 5
    assert len([record for record in caplog.records if "counts as empty" in record.getMessage()]) == 1
    strict = ValkeyCache("valkey://127.0.0.1:1", {"OPTIONS": {**options, "ignore_exceptions": False}})
    with pytest.raises(valkey.exceptions.ConnectionError):
        strict.get("a")


def test_a_demoted_node_is_asked_again(cache: ValkeyCache, client: valkey.Valkey) -> None:
    cache.get("a")  # the connection that leads to the old primary
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    promoted = threading.Timer(0.3, lambda: client.execute_command("REPLICAOF", "NO", "ONE"))
    promoted.start()
    try:
        cache.set("a", 1)
        cache.set_many({"b": 2, "c": 3})
        assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3}
    finally:
        promoted.join()


def test_time_left_patterns_and_locks(cache: ValkeyCache, server: Engine) -> None:
    cache.set("a", 1, timeout=100)
    cache.set("b", 1, timeout=None)
    assert 90 < (cache.ttl("a") or 0) <= 100
    assert (cache.ttl("b"), cache.ttl("c")) == (None, 0)
    other = ValkeyCache(f"valkey://{server.address}:{server.port}/0", {"KEY_PREFIX": "x*"})
    cache.set_many({f"user:{n}": n for n in range(1200)})
    cache.set("user:1", "of version 2", version=2)
    other.set("user:1", "of another prefix")
    assert cache.delete_pattern("user:*") == 1200
    assert (cache.get("user:1", version=2), other.get("user:1"), cache.get("a")) == ("of version 2", "of another prefix", 1)
    assert other.delete_pattern("user:?") == 1
    with cache.lock("report") as fence, pytest.raises(LockBusy):
        assert fence
        cache.lock("report", wait_seconds=0).acquire()


async def test_time_left_patterns_and_locks_async(cache: ValkeyCache) -> None:
    await cache.aset_many({"user:1": 1, "user:2": 2}, timeout=100)
    assert 90 < (await cache.attl("user:1") or 0) <= 100
    assert await cache.adelete_pattern("user:*") == 2
    async with cache.alock("report"):
        with pytest.raises(LockBusy):
            await cache.alock("report", wait_seconds=0).acquire(0)


def test_a_loop_that_ends_closes_its_connections(cache: ValkeyCache, client: valkey.Valkey) -> None:
    def connected() -> int:
        return int(client.info("clients")["connected_clients"])

    before = connected()
    cache_loops = cache._clients._by_loop
    for _ in range(20):
        async_to_sync(cache.aget)("a")  # a loop of its own each time, as for an async view under WSGI
        asyncio.run(cache.aget("a"))
    assert cache_loops == {}
    wait_for(lambda: connected() <= before, "the connections of ended loops to close")
    stopped = asyncio.new_event_loop()
    stopped.run_until_complete(cache.aget("a"))
    stopped.close()  # without a word to its generators
    asyncio.run(cache.aget("a"))
    assert cache_loops == {}


def test_connections_are_bounded(server: Engine, client: valkey.Valkey) -> None:
    few = ValkeyCache(f"valkey://{server.address}:{server.port}/0", {"OPTIONS": {"max_connections": 3}})
    before = int(client.info("clients")["connected_clients"])

    async def crowd() -> int:
        await asyncio.gather(*(few.aget(str(n)) for n in range(200)))
        return int(client.info("clients")["connected_clients"])

    assert asyncio.run(crowd()) - before <= 3
