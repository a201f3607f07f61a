"""Real requests through a real Flask application, in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import flask
import pytest
import valkey
from markupsafe import Markup
from werkzeug.test import TestResponse

from cachekeep_patterns.contrib.flask import ServerSessions
from cachekeep_patterns.sessions import SessionStore

KEY, NEW_KEY = "k" * 32, "n" * 32


@pytest.fixture
def make(store: SessionStore) -> Callable[..., flask.Flask]:
    def make(**config: Any) -> flask.Flask:
        app = flask.Flask("shop")
        app.config.update({"SECRET_KEY": KEY, **config})
        app.session_interface = ServerSessions(store)
        app.extensions["gate"] = threading.Barrier(1)

        @app.get("/")
        def read() -> Any:
            return {name: flask.session[name] for name in flask.session if name != "_permanent"}

        @app.get("/write/<name>/<value>")
        def write(name: str, value: str) -> str:
            flask.session[name] = value
            return "ok"

        @app.get("/race/<name>")
        def race(name: str) -> str:
            flask.session.get("x")
            app.extensions["gate"].wait()
            flask.session[name] = 1
            return "ok"

        @app.get("/login/<user>")
        def login(user: str) -> str:
            flask.session.login(user)  # type: ignore[attr-defined]
            return "ok"

        @app.get("/logout")
        def logout() -> str:
            flask.session.clear()
            return "ok"

        @app.get("/stay")
        def stay() -> str:
            flask.session.permanent = True
            return "ok"

        @app.get("/flash")
        def flash() -> str:
            flask.flash("hello", "note")
            return "ok"

        @app.get("/flashed")
        def flashed() -> Any:
            return flask.jsonify(flask.get_flashed_messages(with_categories=True))

        @app.get("/fail")
        def fail() -> str:
            flask.session["failed"] = 1
            raise RuntimeError("on purpose")

        @app.get("/public")
        def public() -> str:
            return "ok"

        return app

    return make


def cookie(response: TestResponse) -> str | None:
    return response.headers.get("Set-Cookie")


def test_the_cookie_follows_flasks_settings(make: Callable[..., flask.Flask]) -> None:
    app = make(SESSION_COOKIE_NAME="shop", SESSION_COOKIE_SAMESITE="Strict", SESSION_COOKIE_SECURE=True)
    line = cookie(app.test_client().get("/write/a/1", base_url="https://localhost"))
    assert line is not None
    assert line.startswith("shop=")
    assert all(flag in line for flag in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/"))


def test_set_once_and_varying_only_if_used(make: Callable[..., flask.Flask], client: valkey.Valkey) -> None:
    web = make().test_client()
    assert cookie(web.get("/")) is None
    assert cookie(web.get("/write/a/1")) is not None
    again = web.get("/write/a/2")
    assert cookie(again) is None
    assert "Cookie" in again.headers["Vary"]
    calls = client.info("stats")["total_commands_processed"]
    assert "Vary" not in web.get("/public").headers
    assert client.info("stats")["total_commands_processed"] == calls + 1
    assert web.get("/").json == {"a": "2"}


@pytest.mark.parametrize("requests", [2, 20])
def test_concurrent_requests_lose_nothing(make: Callable[..., flask.Flask], requests: int) -> None:
    app = make()
    web = app.test_client()
    web.get("/write/start/1")
    held = web.get_cookie("session")
    assert held is not None
    app.extensions["gate"] = threading.Barrier(requests)

    def request(number: int) -> None:
        one = app.test_client()
        one.set_cookie("session", held.value)
        assert one.get(f"/race/k{number}").status_code == 200

    threads = [threading.Thread(target=request, args=(number,)) for number in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web.get("/").json == {"start": "1", **{f"k{number}": 1 for number in range(requests)}}


def test_login_logout_and_the_worthless_old_cookies(make: Callable[..., flask.Flask], store: SessionStore) -> None:
    app = make()
    web = app.test_client()
    web.get("/write/a/1")
    before = web.get_cookie("session")
    web.get("/login/ada")
    after = web.get_cookie("session")
    assert before is not None
    assert after is not None
    assert web.get("/").json == {"a": "1"}
    assert len(store.sessions_of("ada")) == 1
    assert "Max-Age=0" in (cookie(web.get("/logout")) or "")
    for held in (before, after):
        thief = app.test_client()
        thief.set_cookie("session", held.value)
        assert thief.get("/").json == {}


def test_a_permanent_session_gets_a_lasting_cookie(make: Callable[..., flask.Flask], store: SessionStore) -> None:
    web = make(SESSION_REFRESH_EACH_REQUEST=False).test_client()
    assert "Max-Age" not in (cookie(web.get("/write/a/1")) or "")
    assert f"Max-Age={30 * 24 * 3600}" in (cookie(web.get("/stay")) or "")
    assert cookie(web.get("/stay")) is None


def test_lifetimes_are_as_flask_documents_them(make: Callable[..., flask.Flask], store: SessionStore) -> None:
    app = make(PERMANENT_SESSION_LIFETIME=timedelta(minutes=7))
    web = app.test_client()
    web.get("/write/a/1")
    first = cookie(web.get("/stay")) or ""
    assert "Max-Age=420;" in first
    assert cookie(web.get("/public")) is None
    assert "Max-Age=420;" in (cookie(web.get("/")) or "")  # refreshed by each request that uses it
    (handle,) = [key for key in store.client.scan_iter("session:*") if b":user:" not in key]
    assert 0 < store.client.pttl(handle) <= 420_000  # and the session itself lives as long


def test_flasks_flags(make: Callable[..., flask.Flask]) -> None:
    app = make()
    with app.test_request_context():
        app.preprocess_request()
        session = flask.session
        assert (session.new, session.modified, session.permanent) == (True, False, False)
        session["a"] = {"b": 1}
        assert (session.modified, session.accessed) == (True, True)
        session.modified = True
        session.permanent = True
        assert app.process_response(flask.Response()).headers["Set-Cookie"]
        session.modified = False
        assert not session.modified
        session["a"]["b"] = 2
        assert session.modified


def test_a_key_as_short_as_flask_lets_it_be(make: Callable[..., flask.Flask]) -> None:
    web = make(SECRET_KEY="dev", SECRET_KEY_FALLBACKS=["old"]).test_client()
    web.get("/write/a/1")
    assert web.get("/").json == {"a": "1"}


def test_values_come_back_as_what_they_were(make: Callable[..., flask.Flask]) -> None:
    app = make()
    values = [
        Markup("<b>"),
        (1, (2,)),
        {3},
        Decimal("1.50"),
        UUID(int=7),
        b"x",
        datetime(2026, 1, 2, tzinfo=ZoneInfo("Europe/Rome")),
    ]

    @app.get("/put")
    def put() -> str:
        flask.session["values"] = values
        flask.flash(Markup("<i>safe</i>"), "note")
        return "ok"

    @app.get("/got")
    def got() -> str:
        assert flask.session["values"] == values
        assert [type(one) for one in flask.session["values"]] == [type(one) for one in values]
        return flask.render_template_string("{% for one in get_flashed_messages() %}{{ one }}{% endfor %}")

    web = app.test_client()
    web.get("/put")
    assert web.get("/got").text == "<i>safe</i>"


def test_a_request_that_fails_saves_nothing(make: Callable[..., flask.Flask]) -> None:
    web = make().test_client()
    web.get("/write/a/1")
    assert web.get("/fail").status_code == 500
    assert web.get("/").json == {"a": "1"}


def test_flashes(make: Callable[..., flask.Flask]) -> None:
    web = make().test_client()
    web.get("/flash")
    assert web.get("/flashed").json == [["note", "hello"]]
    assert web.get("/flashed").json == []


def test_keys_rotate_and_forgeries_read_nothing(make: Callable[..., flask.Flask]) -> None:
    web = make().test_client()
    web.get("/write/a/1")
    old = web.get_cookie("session")
    assert old is not None
    rotated = make(SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=[KEY]).test_client()
    rotated.set_cookie("session", old.value)
    assert rotated.get("/").json == {"a": "1"}
    fresh = rotated.get_cookie("session")
    assert fresh is not None
    assert fresh.value != old.value
    for value, sees in ((fresh.value, {"a": "1"}), (old.value, {}), (fresh.value[:-2], {})):
        later = make(SECRET_KEY=NEW_KEY).test_client()
        later.set_cookie("session", value)
        assert later.get("/").json == sees


def test_without_a_key_there_is_no_session(make: Callable[..., flask.Flask]) -> None:
    app = make(SECRET_KEY=None)
    app.testing = True
    with pytest.raises(RuntimeError, match="session is unavailable"):
        app.test_client().get("/write/a/1")
