"""Whoever answers, be it with an error, is alive: what is done about it, and what is said."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, NOW, group, healthy, running, silent, step

from cachekeep.model import Act, Admit, Cache, Decide, Errand, Excuse, Interrupt, NodeView, Plight, Silence, View, Wait
from cachekeep.plan import Policy
from cachekeep.plan.lead.judge import plight
from cachekeep.plan.situation import Situation
from cachekeep.plan.status import condition

FOREVER = 10_000.0


def excused(cache: Cache, name: str, kind: Plight, seconds: float = FOREVER, words: str = "") -> NodeView:
    """A node that is alive and tells nothing."""
    return NodeView(process="running", incarnation=1, answer=Excuse(kind, words, seconds))


@pytest.mark.parametrize("kind", get_args(Plight))
def test_a_primary_with_an_excuse_is_never_stopped_by_itself(kind: Plight) -> None:
    cache = group()
    answer = step(cache, healthy(cache, demo_001=excused(cache, "demo-001", kind)))
    if kind == "busy":
        assert answer == Act(((Interrupt("demo-001"),),), "demo-001 has been busy with a script for 15 s: it is ended")
    else:
        assert isinstance(answer, Wait)
        assert answer.because.startswith("demo-001 ")


@pytest.mark.parametrize(
    ("kind", "words", "said", "refused"),
    [
        ("loading", "", "is loading its data", False),
        ("busy", "", "is busy with a script or function of a client: one that has written nothing is ended", False),
        ("unkillable", "", "cannot be ended, as it has written: it is waited for", True),
        ("paused", "", "holds back every command, as a client asked for (CLIENT PAUSE): it goes on by itself", True),
        ("crowded", "", "lets nobody else in, not even us: close some of them", True),
        ("stranger", "WRONGPASS no", "its admin user was changed, or another process answers at its address (WRONGPASS no)", True),
        ("failing", "ERR so it is", "answers with an error (ERR so it is)", True),
    ],
)
def test_each_excuse_has_its_own_sentence(kind: Plight, words: str, said: str, refused: bool) -> None:
    cache = group()
    answer = step(cache, healthy(cache, demo_001=excused(cache, "demo-001", kind, 1.0, words)))
    assert isinstance(answer, Wait)
    assert said in answer.because
    assert answer.refused is refused


@pytest.mark.parametrize("kind", get_args(Plight))
def test_a_replica_with_an_excuse_is_told_of_and_left_alone(kind: Plight) -> None:
    cache = group()
    view = excused(cache, "demo-002", kind, 1.0)
    answer = step(cache, healthy(cache, demo_002=view))
    while isinstance(answer, Decide):  # it may be out of sync with its primary by then
        cache = replace(cache, decided=answer.decided)
        answer = step(cache, healthy(cache, demo_002=view))
    assert isinstance(answer, Wait)
    assert plight(cache.node("demo-002"), view.excuse) in answer.because  # type: ignore[arg-type]


def test_scripts_are_given_the_patience_that_the_operator_sets() -> None:
    cache = group()
    view = healthy(cache, demo_002=excused(cache, "demo-002", "busy", 20.0))
    policy = Policy(script_seconds=30.0, replica_seconds=FOREVER)
    assert isinstance(step(cache, view, policy), Wait)
    view = healthy(cache, demo_002=excused(cache, "demo-002", "busy", 30.0))
    assert step(cache, view, policy) == Act(
        ((Interrupt("demo-002"),),), "demo-002 has been busy with a script for 30 s: it is ended"
    )


def test_silence_is_given_longer_than_an_engine_lets_a_script_run() -> None:
    """From then on it says that it is busy (``lua-time-limit``, 5 s, which no parameter group changes)."""
    assert Policy().silence_seconds >= 2 * 5
    cache = group()
    assert isinstance(step(cache, healthy(cache, demo_001=silent(cache, "demo-001", 14.9))), Wait)
    assert isinstance(step(cache, healthy(cache, demo_001=silent(cache, "demo-001", 15.0))), Decide)


def at_work(cache: Cache, name: str, seconds: float) -> NodeView:
    """It answers nothing, and its process uses a CPU."""
    return replace(silent(cache, name, seconds), answer=Silence(seconds, reachable=True, computes=True))


@pytest.mark.parametrize("seconds", [15.0, 299.9])
def test_one_long_command_is_no_hang(seconds: float) -> None:
    cache = group()
    answer = step(cache, healthy(cache, demo_001=at_work(cache, "demo-001", seconds)))
    assert isinstance(answer, Wait)
    assert (answer.reason, answer.about, answer.refused) == ("answer", ("demo-001",), True)
    assert "is at work: on one long command, it seems. It is given 300 s" in answer.because


def test_no_command_is_given_for_ever() -> None:
    """An engine that turns in a circle by a fault of its own looks the same."""
    cache = group()
    answer = step(cache, healthy(cache, demo_001=at_work(cache, "demo-001", 300.0)))
    assert isinstance(answer, Decide)
    assert answer.decided.nodes[0].condemned
    answer = step(cache, healthy(cache, demo_001=at_work(cache, "demo-001", 20.0)), Policy(command_seconds=20.0))
    assert isinstance(answer, Decide)


def test_a_replica_at_work_does_not_hang_either() -> None:
    cache = group()
    for seconds, hangs in ((20.0, False), (300.0, True)):
        view = healthy(cache, demo_002=at_work(cache, "demo-002", seconds))
        assert Situation(cache, view, NOW, MOMENT, Policy()).hangs(cache.decided.nodes[1]) is hangs


@pytest.mark.parametrize("errand", ["reboot", "test-failover", "promote"])
def test_the_user_need_not_wait_for_a_long_command(errand: str) -> None:
    node = "demo-001" if errand == "reboot" else "demo-002"
    cache = group(errands=(Errand(serial=1, kind=errand, nodes=(node,), shard="0001"),))  # type: ignore[arg-type]
    view = healthy(cache, demo_001=at_work(cache, "demo-001", 6.0))
    while isinstance(answer := step(cache, view), Decide) and not cache.decided.nodes[0].condemned:
        cache = replace(cache, decided=answer.decided)
    assert cache.decided.nodes[0].condemned


def test_a_sentence_that_is_waited_with_holds_no_seconds() -> None:
    """It would be another at every look, and each is logged and published."""
    cache = group(automatic_failover=False)
    said = {step(cache, healthy(cache, demo_001=silent(cache, "demo-001", 20.0 + n))).because for n in range(3)}
    assert len(said) == 1


@pytest.mark.parametrize("kind", get_args(Plight))
@pytest.mark.parametrize("errand", ["reboot", "test-failover", "promote"])
def test_the_user_has_a_way_out(kind: Plight, errand: str) -> None:
    """A primary that says why it does not work is stopped when the user asks for that, and an in-sync replica takes over."""
    node = "demo-001" if errand == "reboot" else "demo-002"
    asked = Errand(serial=1, kind=errand, nodes=(node,), shard="0001")  # type: ignore[arg-type]
    cache = group(errands=(asked,))
    view = healthy(cache, demo_001=excused(cache, "demo-001", kind))
    for _ in range(4):
        answer = step(cache, view, Policy(script_seconds=2 * FOREVER))
        assert isinstance(answer, Decide), answer
        cache = replace(cache, decided=answer.decided)
        if cache.node("demo-001").condemned:  # type: ignore[union-attr]
            break
    assert cache.node("demo-001").condemned  # type: ignore[union-attr]
    assert cache.decided.shards[0].primary == "demo-001", "nobody leads before it is confirmed stopped"


@pytest.mark.parametrize(("kind", "status"), [("crowded", "available"), ("paused", "modifying"), ("busy", "modifying")])
def test_only_one_that_serves_its_clients_is_available(kind: Plight, status: str) -> None:
    cache = group()
    view: View = healthy(cache, demo_001=excused(cache, "demo-001", kind, 1.0))
    made = step(cache, view)
    assert isinstance(made, Wait)
    assert condition(Situation(cache, view, NOW, MOMENT, Policy()), made).status == status


def test_one_that_answered_a_moment_ago_is_not_hung() -> None:
    cache = group()
    assert isinstance(step(cache, healthy(cache, demo_001=running(cache, "demo-001", answer=Excuse("paused")))), Wait)


# -- a primary that has as many clients as it may


@pytest.mark.parametrize(
    ("primary", "replica", "let_in"),
    [
        ({"places": 0}, {"link_up": False, "reaches": None}, True),
        ({"places": -3}, {"link_up": False, "reaches": False}, True),
        ({"places": 1}, {"link_up": False, "reaches": None}, False),  # it gets in by itself
        ({"places": None}, {"link_up": False, "reaches": None}, False),
        ({"places": 0}, {"link_up": True, "reaches": True}, False),
        ({"places": 0}, {"link_up": False, "reaches": True}, False),  # it is being fed
        ({"places": 0}, {"link_up": False, "reaches": None, "answer": Excuse("busy")}, False),
    ],
)
def test_a_replica_without_a_link_is_let_in_at_a_full_primary(
    primary: dict[str, object], replica: dict[str, object], let_in: bool
) -> None:
    cache = group(shards={"in_sync": frozenset({"demo-003"})})
    view = healthy(cache, demo_001=running(cache, "demo-001", **primary), demo_002=running(cache, "demo-002", **replica))
    answer = step(cache, view)
    while isinstance(answer, Decide):
        cache = replace(cache, decided=answer.decided)
        answer = step(cache, view)
    if let_in:
        assert answer == Act(
            ((Admit("demo-002", "demo-001", 1),),), "demo-002 finds no place at a primary that has as many clients as it may"
        )
    else:
        assert not (isinstance(answer, Act) and any(isinstance(e, Admit) for stage in answer.stages for e in stage))
