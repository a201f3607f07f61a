from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekeep_patterns.sessions import Cookie, SessionId, Signer

OLD, NEW = "o" * 32, "n" * 32


def test_an_id_parses_back_and_rotates_under_the_same_handle() -> None:
    sid = SessionId.new()
    assert SessionId.parse(str(sid)) == sid
    assert sid.rotated().handle == sid.handle
    assert sid.rotated().token != sid.token
    assert sid.token not in repr(sid)


@given(st.one_of(st.none(), st.text(max_size=60)))
def test_only_our_own_shape_is_an_id(text: str | None) -> None:
    parsed = SessionId.parse(text)
    assert parsed is None or str(parsed) == text


@pytest.mark.parametrize("text", ["", "a" * 43, "a" * 45, "a" * 43 + "\n", "a" * 44 + "\n", "é" * 44, "a" * 43 + "*"])
def test_what_is_not_an_id(text: str) -> None:
    assert SessionId.parse(text) is None


def test_a_signature_covers_every_character() -> None:
    signer = Signer(NEW)
    signed = signer.sign(str(SessionId.new()))
    assert signer.verify(signed) is not None
    for at in range(len(signed)):
        for other in "A", "B", ".":
            if signed[at] != other:
                assert signer.verify(signed[:at] + other + signed[at + 1 :]) is None, at


@given(st.text(max_size=120))
def test_nothing_else_verifies(text: str) -> None:
    assert Signer(NEW).verify(text) is None


def test_keys_rotate() -> None:
    sid = str(SessionId.new())
    signed = Signer(OLD).sign(sid)
    assert Signer([NEW, OLD]).verify(signed) == (sid, False)
    assert Signer([NEW, OLD]).verify(Signer(NEW).sign(sid)) == (sid, True)
    assert Signer(NEW).verify(signed) is None


def test_a_signature_for_one_cookie_is_none_for_another() -> None:
    signed = Signer(NEW, "admin").sign(str(SessionId.new()))
    assert Signer(NEW, "shop").verify(signed) is None


@pytest.mark.parametrize("keys", [[], ["short"], [NEW, "short"], ""])
def test_weak_keys_are_refused(keys: list[str] | str) -> None:
    with pytest.raises(ValueError):
        Signer(keys)


def test_the_cookie_line() -> None:
    assert Cookie().set("v") == "session=v; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert Cookie().clear() == "session=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"
    loose = Cookie(name="s", path="/a", domain="a.test", secure=False, http_only=False, same_site="strict", max_age_seconds=9)
    assert loose.set("v") == "s=v; Path=/a; Max-Age=9; Domain=a.test; SameSite=Strict"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a b"},
        {"name": ""},
        {"path": "/; Domain=evil.test"},
        {"domain": "a\r\nSet-Cookie: b"},
        {"same_site": "none", "secure": False},
        {"same_site": "whatever"},
        {"name": "__Host-s", "domain": "a.test"},
        {"name": "__Host-s", "path": "/a"},
        {"name": "__Secure-s", "secure": False},
    ],
)
def test_cookies_that_browsers_reject_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Cookie(**wrong)  # type: ignore[arg-type]


def test_every_cookie_of_the_name_is_read() -> None:
    assert list(Cookie(name="s").values('a=1; s=x; ss=2; s="y"; s')) == ["x", "y"]
