"""Keys: plain text stands as it is, no two things share a name, keys are never tags."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import valkey
from hypothesis import given
from hypothesis import strategies as st

from cachekeep_patterns import Cache, connect
from cachekeep_patterns.errors import UncacheableArgument
from cachekeep_patterns.keys import MAX_BODY_BYTES, KeyBuilder, Namespace, canonical, safe
from patterns_rig.servers import Server


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    RED = "red"


ID = uuid.UUID(int=7)
NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)
BERLIN = datetime.datetime(2026, 1, 2, 13, tzinfo=ZoneInfo("Europe/Berlin"))
DIFFERENT: list[Any] = [
    *(float("nan"), float("inf"), -float("inf"), None, "None", "nan", "inf", "null", "true", True, False, "True"),
    *(0, 1, 1.0, "1", "-1", -1, "1.0", decimal.Decimal("1"), decimal.Decimal("1.0"), datetime.timedelta(1), ID),
    *(b"abc", "YWJj", "abc", bytearray(b"x"), NOON, NOON.isoformat(), str(NOON), BERLIN, NOON.replace(tzinfo=None)),
    *(NOON.date(), str(NOON.date()), Colour.RED, Word.RED, "red", "Colour.RED", ZoneInfo("UTC"), int, str),
    *((1, 2), [1, 2], {1, 2}, {"1": 2}, {1: 2}, (), [], {}, ["a", "b"], ["a,b"], "a:b", ("a:b", "c"), "a b"),
    *("", '"1"', "~1", '~"1"', "#x", "#all", "ü", "x" * 500, "x" * 501, "\ud800", "\udc80", "'\\ud800'"),
]


@pytest.mark.parametrize("template", [None, "{it}", "k:{it}", "{it}:k", "k:{it}:k:{other}"])
def test_no_two_arguments_share_a_name(template: str | None) -> None:
    def function(it: Any, other: int = 1) -> None: ...

    build = KeyBuilder(function, template)
    names = {Namespace("shop").key(build((one,), {})): one for one in DIFFERENT}
    assert len(names) == len(DIFFERENT)
    assert all(len(name) <= 250 and name.isascii() and name.isprintable() and " " not in name for name in names)


@pytest.mark.parametrize("uid", [7, -7, ID, "ada@example.org", "a-b", "a:b", "1.5", "None", str(ID), "ü", "a b", "x" * 300])
def test_a_template_means_what_an_f_string_does(server: Server, uid: Any) -> None:
    cache = Cache(connect(f"valkey://127.0.0.1:{server.port}"), namespace="shop")
    calls = []

    @cache.cached(key="user:{uid}", tags=["u:{uid}"])
    def user(uid: Any) -> int:
        calls.append(uid)
        return len(calls)

    assert (user(uid), user(uid)) == (1, 1)
    cache.invalidate(f"user:{uid}")
    assert (user(uid), user(uid)) == (2, 2)
    cache.invalidate(tags=[f"u:{uid}"])
    assert (user(uid), user(uid)) == (3, 3)


def test_an_annotation_says_which_texts_stand_as_they_are() -> None:
    def of_text(name: str | None) -> None: ...
    def of_number(number: int) -> None: ...
    def of_day(day: datetime.date) -> None: ...

    assert [KeyBuilder(of_text, "k:{name}")((one,), {}) for one in ("1", 1, None)] == ["k:1", "k:~1", "k:~None"]
    assert [KeyBuilder(of_number, "k:{number}")((one,), {}) for one in ("1", 1, "x")] == ['k:~"1"', "k:1", 'k:~"x"']
    assert KeyBuilder(of_day, "k:{day}")((NOON.date(),), {}) == "k:2026-01-02"


def test_methods_and_attributes() -> None:
    class Shop:
        def __init__(self, number: int) -> None:
            self.number = number

        def price(self, item: str) -> None: ...

    build = KeyBuilder(Shop.price, "{self.number}:{item}")
    assert build((Shop(3), "tea:green"), {}) == "3:tea:green"
    assert build((Shop(3),), {"item": "tea"}) == "3:tea"


@pytest.mark.parametrize("template", ["{a}{b}", "{a}x{b}", "{a}~{b}", "{c}", "{a!r}", "{a:>3}", "{a[0]}", "{a.}"])
def test_a_template_that_could_mean_two_things_is_refused(template: str) -> None:
    def function(a: str, b: str) -> None: ...

    with pytest.raises(ValueError, match="template"):
        KeyBuilder(function, template)


def test_what_has_no_name_is_refused() -> None:
    for value in (object(), lambda: 1, iter(())):
        with pytest.raises(UncacheableArgument, match="skip="):
            canonical(value)
    with pytest.raises(ValueError, match="lambdas"):
        KeyBuilder(lambda a: a)


texts = st.text() | st.text('ab:#~%"\\{} ', max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.binary() | st.decimals(allow_nan=False) | st.dates() | st.uuids(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(texts, inner),
    max_leaves=6,
)


@given(values, values)
def test_names_of_arguments_are_injective(one: Any, other: Any) -> None:
    same = type(one) is type(other) and repr(one) == repr(other)
    if isinstance(one, dict) and isinstance(other, dict):
        same = canonical(sorted(one.items(), key=repr)) == canonical(sorted(other.items(), key=repr))
    assert (canonical(one) == canonical(other)) == same


@given(texts, texts, texts, texts)
def test_two_places_are_told_apart(a: str, b: str, c: str, d: str) -> None:
    def function(one: Any, two: Any) -> None: ...

    build = KeyBuilder(function, "k:{one}:{two}")
    assert (build((a, b), {}) == build((c, d), {})) == ((a, b) == (c, d))


@given(texts.filter(bool), texts, texts.filter(bool), texts)
def test_namespaces_keys_and_tags_are_told_apart(one: str, key: str, other: str, second: str) -> None:
    a, b = Namespace(one), Namespace(other)
    assert (a.key(key) == b.key(second)) == ((one, key) == (other, second))
    assert (a.tag(key) == b.tag(second)) == ((one, key) == (other, second))
    assert len({a.key(key), b.tag(second), b.everything}) == 3
    assert max(map(len, (a.key(key), a.tag(key), a.everything))) <= 250


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=MAX_BODY_BYTES))
def test_plain_text_stands_as_it_is(name: str) -> None:
    assert name[0] in "#~" or Namespace("shop").key(name) == f"shop:{name}" == f"shop:{safe(name)}"


def test_what_looks_like_a_digest_is_nobody_elses() -> None:
    long = "x" * 500
    assert safe(safe(long)) != safe(long)


def test_tags_are_a_list(server: Server) -> None:
    cache = Cache(connect(f"valkey://127.0.0.1:{server.port}"))
    with pytest.raises(TypeError, match=r"tags=\['users'\]"):
        cache.invalidate(tags="users")
    with pytest.raises(TypeError, match=r"tags=\['users'\]"):
        cache.cached(tags="users")(test_tags_are_a_list)
    with pytest.raises(TypeError, match=r"tags=\['users'\]"):
        cache.get("k", lambda: 1, tags="users")
    assert valkey.Valkey(port=server.port).dbsize() == 0
