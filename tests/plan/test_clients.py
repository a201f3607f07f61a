"""Users of clients: who may know them is decided before anybody is told, and forgotten when nobody knows them any more."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, group, healthy, running, step

from cachekeep.engines.runtime import runtime
from cachekeep.engines.users import WITHHELD
from cachekeep.model import (
    Act,
    Anybody,
    Apply,
    Cache,
    ClientUser,
    Decide,
    Flight,
    NamedUsers,
    Silence,
    Start,
    View,
    Wait,
    fingerprint,
)
from cachekeep.plan import condition
from cachekeep.plan.change.clients import forget
from cachekeep.plan.situation import Policy, Situation

APP, READER = (ClientUser(name=name, access="on ~* +@all", passwords=("ab" * 32,)) for name in ("app", "reader"))
BOTH, ONE = NamedUsers(group="g", users=(APP, READER)), NamedUsers(group="g", users=(APP,))
APPLIED = ((Apply("demo-002", ("acl",)), Apply("demo-003", ("acl",))), (Apply("demo-001", ("acl",)),))


def cache(clients: NamedUsers | None = None, *known: str) -> Cache:
    made = group(3)
    wanted = replace(made.wanted, clients=clients or Anybody())
    return replace(made, wanted=wanted, decided=replace(made.decided, known_users=frozenset(known)))


def told(of: Cache, as_of: Cache, *names: str, **more: Any) -> View:
    """All nodes run with what is decided, but for these, which run with what was decided then."""
    changes = {}
    for name in names or ("demo-001", "demo-002", "demo-003"):
        node = as_of.node(name)
        assert node is not None
        changes[name.replace("-", "_")] = running(of, name, **{"digests": runtime(as_of, node).digests} | more)
    return healthy(of, **changes)


def acl(of: Cache) -> dict[str, list[str]]:
    return {name: rules for name, *rules in (line.split() for line in runtime(of, of.decided.nodes[0]).acl)}


def test_the_way_of_users() -> None:
    before, wanted = cache(), cache(BOTH)
    answer = step(wanted, told(wanted, before))
    assert isinstance(answer, Decide)
    assert answer.decided.known_users == {"app", "reader"}
    known = cache(BOTH, "app", "reader")
    answer = step(known, told(known, before))
    assert isinstance(answer, Act)
    assert answer.stages == APPLIED
    assert isinstance(step(known, healthy(known)), Wait)
    fewer = cache(ONE, "app", "reader")
    assert runtime(fewer, fewer.decided.nodes[0]).gone == ("reader",)
    assert isinstance(step(fewer, told(fewer, known)), Act)
    assert isinstance(step(fewer, told(fewer, known, "demo-003")), Act), "one that missed it is found"
    answer = step(fewer, healthy(fewer))
    assert isinstance(answer, Decide)
    assert answer.decided.known_users == {"app"}


def test_nobody_is_forgotten_while_some_process_may_know_him() -> None:
    fewer, known = cache(ONE, "app", "reader"), cache(BOTH, "app", "reader")

    def forgets(view: View) -> bool:
        return forget(Situation(fewer, view, NOW, MOMENT, Policy())) is not None

    assert forgets(healthy(fewer))
    assert not forgets(told(fewer, known, "demo-002"))
    assert not forgets(told(fewer, known, "demo-002", answer=Silence(9.0)))
    assert not forgets(told(fewer, fewer, "demo-002", digests=None))
    assert forgets(told(fewer, known, "demo-002", process="exited", answer=None))
    for effect in (Start("demo-002"), Apply("demo-002", ("acl",))):
        flight = Flight(effect=effect, because="", since_seconds=1.0, left_seconds=9.0)
        assert not forgets(replace(healthy(fewer), flights=(flight,))), "it brings what was wanted when it began"


def test_what_is_told_of_it() -> None:
    known, before = cache(BOTH, "app", "reader"), cache()

    def tells(view: View) -> tuple[str, str]:
        found = condition(Situation(known, view, NOW, MOMENT, Policy()), step(known, view))
        return found.clients_told, found.status

    assert tells(healthy(known)) == (fingerprint(BOTH), "available")
    assert tells(told(known, before, "demo-003")) == ("", "modifying")


def test_who_may_come_in() -> None:
    open_to_all = acl(cache())["default"]
    assert open_to_all[:3] == ["reset", "on", "nopass"]
    assert {f"-{name}" for name in WITHHELD if "|" not in name} <= set(open_to_all)
    found = acl(cache(BOTH, "app", "reader"))
    assert found["default"] == ["reset", "off"]
    assert found["app"][:6] == ["reset", "on", f"#{'ab' * 32}", "~*", "+@all", "-bgrewriteaof"]
    named = NamedUsers(group="g", users=(ClientUser(name="default", access="on ~a -@all +get"),))
    assert acl(cache(named))["default"][:6] == ["reset", "on", "nopass", "~a", "-@all", "+get"]
    assert runtime(cache(named), group(1).decided.nodes[0]).gone == ()
