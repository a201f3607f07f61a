"""Passwords of our own users are changed step by step, and never beyond what some process has not been told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, group, healthy, memcached, running, step

from cachekeep.engines.runtime import runtime
from cachekeep.engines.users import ADMIN, MOVER, REPLICA, credential_of
from cachekeep.model import Act, Apply, Cache, Decide, Flight, MoveSlots, NodeView, Secret, Silence, Start, View, Wait
from cachekeep.plan.change.credentials import rotate
from cachekeep.plan.situation import Policy, Situation

OLD, NEW, NEWER = (credential_of(serial, Secret(f"word {serial}"), "sealed") for serial in (1, 2, 3))


def cache(*credentials: Any, **decided: int | None) -> Cache:
    made = group(3)
    wanted = replace(made.wanted, credentials=credentials or (OLD, NEW))
    return replace(made, wanted=wanted, decided=replace(made.decided, **decided))


def decide(answer: object) -> tuple[int, int | None, str]:
    assert isinstance(answer, Decide)
    return answer.decided.credential, answer.decided.other_credential, answer.because


def told(of: Cache, **as_of: Cache) -> View:
    """All nodes run with what is decided, but for those that run with what was decided then."""
    changes = {}
    for name, then in as_of.items():
        node = then.node(name.replace("_", "-"))
        assert node is not None
        changes[name] = running(of, node.name, digests=runtime(then, node).digests)
    return healthy(of, **changes)


def test_the_way_of_a_password() -> None:
    start = cache()
    both = cache(credential=1, other_credential=2)
    over = cache(credential=2, other_credential=1)
    end = cache(credential=2)
    assert decide(step(start, healthy(start))) == (1, 2, "a new password is accepted beside the old one at every node")
    assert decide(step(both, healthy(both))) == (2, 1, "every node accepts the new password, so all come by it")
    assert decide(step(over, healthy(over))) == (2, None, "every node comes by the new password, so the old one is refused")
    assert isinstance(step(end, healthy(end)), Wait)
    for before, after, part in ((start, both, "acl"), (both, over, "login"), (over, end, "acl")):
        answer = step(after, told(after, **dict.fromkeys(("demo_001", "demo_002", "demo_003"), before)))
        assert isinstance(answer, Act)
        assert answer.stages == ((Apply("demo-002", (part,)), Apply("demo-003", (part,))), (Apply("demo-001", (part,)),))  # type: ignore[arg-type]


def test_what_engines_know_at_each_step() -> None:
    """Who comes by what, and who is let in: at each step, all that anybody comes by is known to all that runs as of that step or
    the one before."""
    steps = [cache(), cache(credential=1, other_credential=2), cache(credential=2, other_credential=1), cache(credential=2)]
    seen = [runtime(c, c.decided.nodes[0]) for c in steps]
    for before, after in itertools.pairwise(seen):
        for who, by in ((before, after), (after, before)):
            assert who.login is not None
            (line,) = [line for line in by.acl if line.startswith(f"{REPLICA} ")]
            assert f"#{who.login.password_hash}" in line
    for of, runs in zip(steps, seen, strict=True):
        for user in (ADMIN, REPLICA, MOVER):
            (line,) = [line for line in runs.acl if line.startswith(f"{user} ")]
            known = {c for c in (OLD, NEW) if f"#{c.hash_of(user)}" in line}
            assert known == set(of.credentials)


@pytest.mark.parametrize("decided", [{"credential": 1, "other_credential": 2}, {"credential": 2, "other_credential": 1}])
@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"answer": Silence(1.0)}, True),
        ({"process": "frozen", "answer": Silence(1.0)}, True),
        ({"process": None, "answer": None}, True),
        ({"digests": None}, True),
        ({"process": "exited", "answer": None}, False),
        ({"process": "absent", "answer": None}, False),
    ],
)
def test_nobody_goes_on_without_a_process_that_may_know_only_the_old_one(
    decided: dict[str, int], changes: dict[str, Any], waits: bool
) -> None:
    """One that is not there begins with what is decided then."""
    of = cache(**decided)  # type: ignore[arg-type]
    node = of.node("demo-003")
    assert node is not None
    view = replace(running(of, "demo-003", digests=runtime(cache(), node).digests), **changes)
    answer = rotate(Situation(of, healthy(of, demo_003=view), NOW, MOMENT, Policy()))
    assert isinstance(answer, Wait if waits else Decide)
    if isinstance(answer, Wait):
        assert answer.because == "demo-003 has not been told of the new password yet, so both are accepted"


@pytest.mark.parametrize("effect", [Start("demo-003"), MoveSlots("a", "b", ((0, 1),), 1, 1, 1.0)])
def test_what_began_before_brings_the_old_one_with_it(effect: Any) -> None:
    for of in (cache(), cache(credential=1, other_credential=2), cache(credential=2, other_credential=1)):
        gone = NodeView(process="exited", incarnation=1)
        flight = Flight(effect=effect, because="it is under way", since_seconds=1.0, left_seconds=5.0)
        view = replace(healthy(of, demo_003=gone), flights=(flight,))
        assert isinstance(rotate(Situation(of, view, NOW, MOMENT, Policy())), Wait)


def test_a_change_that_is_asked_for_meanwhile_comes_afterwards() -> None:
    of = cache(OLD, NEW, NEWER, credential=2, other_credential=1)
    assert decide(step(of, healthy(of)))[:2] == (2, None)
    of = cache(OLD, NEW, NEWER, credential=2)
    assert decide(step(of, healthy(of)))[:2] == (2, 3)


def test_an_engine_without_users_has_nothing_to_change() -> None:
    assert memcached().credentials == ()
    assert rotate(Situation(memcached(), View(), NOW, MOMENT, Policy())) is None
