"""Who may lead next without being asked for: who can be shown to have what was acknowledged, by what was heard, and when."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import (
    MOMENT,
    NOW,
    decided,
    gone,
    group,
    healthy,
    heard,
    later,
    running,
    settled,
    shard,
    shard_with,
    silent,
    step,
)

from cachekeep.model import (
    Act,
    Cache,
    Condemned,
    Confirmed,
    Decide,
    Decided,
    Ended,
    Halted,
    HandOver,
    Moment,
    Move,
    Promote,
    Stop,
    Stream,
    View,
    Wait,
)
from cachekeep.plan import Policy
from cachekeep.plan.lead.evidence import ENGINE_SECONDS, proven
from cachekeep.plan.situation import Situation, with_nodes
from cachekeep.plan.status import condition

ONE, TWO, THREE = "demo-001", "demo-002", "demo-003"


def asked(cache: Cache, view: View, policy: Policy | None = None, moment: Moment = MOMENT) -> str:
    """Of the events of all that can be decided now: what the user is asked to accept."""
    told: list[str] = []
    while isinstance(answer := step(cache, view, policy, moment), Decide):
        told += [e.message for e in answer.events if "--allow-data-loss" in e.message]
        cache = replace(cache, decided=answer.decided)
    (message,) = told
    return message


def led_by(cache: Cache, view: View, policy: Policy | None = None, moment: Moment = MOMENT) -> str | None:
    """Who leads after that; None: it was refused, with what to do."""
    after, _ = settled(cache, view, policy, moment)
    if after.decided.refusals:
        assert asked(cache, view, policy, moment)
        return None
    return shard(after.decided).primary


# -- a primary that is lost


@pytest.mark.parametrize(
    ("said", "held", "leads"),
    [
        (((0.2, 1000),), 1000, TWO),
        (((0.2, 1000),), 2000, TWO),
        (((0.2, 1000), (0.6, 990)), 995, TWO),  # it lacks what was on its way
        (((0.2, 1000), (3.0, 990)), 995, TWO),
        (((0.2, 1000), (3.1, 990)), 995, None),  # it stalled, and nobody saw it
        (((0.2, 1000), (0.6, 990)), 989, None),
        (((3.0, 1000),), 1000, TWO),
        (((3.1, 1000),), 1000, None),  # nobody looked for too long
        (((9.0, 1000),), 9999, None),
        ((), 1000, None),  # a keeper that has just started has heard nothing
        (((0.2, Stream("b", 1000, "a", 1000)),), 1000, TWO),  # it led, and had written nothing yet
        (((0.2, Stream("b", 1100, "a", 1000)),), 1000, None),  # what it wrote went to nobody
        (((0.2, Stream("b", 1000)),), 1000, None),
    ],
)
def test_who_lacks_no_more_than_what_was_on_its_way_leads_and_nobody_else_unasked(said: Any, held: int, leads: str | None) -> None:
    cache = group(2)
    view = healthy(cache, demo_001=gone(said=heard(*said)), demo_002=running(cache, TWO, offset=held))
    assert led_by(cache, view) == leads


def test_nothing_is_on_its_way_to_one_that_is_not_in_sync() -> None:
    """It has all that was heard a moment ago; what was acknowledged since then it would never have got."""
    cache = group(2, shards={"in_sync": frozenset()})
    view = healthy(cache, demo_001=gone(), demo_002=running(cache, TWO, link_up=False))
    assert led_by(cache, view) is None
    after, _ = settled(cache, view)
    assert "(it was not in sync with it)" in asked(cache, view)
    assert [(r.lost, r.best, r.doubt, r.lead) for r in after.decided.refusals] == [(ONE, TWO, "out of sync", ONE)]


@pytest.mark.parametrize(
    ("second", "third", "leads"),
    [
        (990, 1000, THREE),
        (1000, 1000, TWO),  # what is on its way still comes to it alone
        (990, Stream("b", 1000, "a", 980), TWO),
        (400, 1000, None),
    ],
)
def test_one_that_was_not_in_sync_leads_if_it_has_more_than_one_that_was(second: int, third: Any, leads: str | None) -> None:
    """The keepers were halted when it came in sync, and the other stalled meanwhile."""
    cache = group(shards={"in_sync": frozenset({TWO})})
    held = third if isinstance(third, Stream) else Stream("a", third)
    view = healthy(
        cache,
        demo_001=gone(),
        demo_002=running(cache, TWO, offset=second),
        demo_003=running(cache, THREE, stream=held, offset=held.offset),
    )
    assert led_by(cache, view) == leads


LED = ((0.1, Stream("b", 358, "a", 281)), (1.5, Stream("b", 285, "a", 281)), (1.8, Stream("a", 271)))
"""What a successor has said, which led for less than two seconds."""


@pytest.mark.parametrize(
    ("second", "third", "leads"),
    [
        (Stream("b", 283), Stream("a", 281), TWO),
        (Stream("b", 283), None, TWO),  # and as much is known of it before the other answers
        (Stream("b", 283), Stream("a", 300), TWO),  # how far one is that went another way says nothing
        (Stream("b", 300), Stream("b", 350, "a", 281), THREE),
        (Stream("b", 281), Stream("a", 300), THREE),  # neither has anything of what the last one wrote
        (Stream("b", 270), Stream("a", 281), THREE),
        (Stream("x", 500), Stream("a", 281), THREE),
    ],
)
def test_who_was_fed_anew_by_the_last_one_has_what_that_one_had_of_those_before(second: Stream, third: Any, leads: str) -> None:
    """By its own word it has no history but the last; that this goes on from another, the one who led has said."""
    cache = group()
    unsaid = replace(shard(cache.decided), confirmed=Confirmed(primary=TWO, order=0))
    cache = replace(cache, decided=replace(cache.decided, shards=(unsaid,)))
    view = healthy(
        cache,
        demo_001=gone(said=heard(*LED)),
        demo_002=running(cache, TWO, stream=second, offset=second.offset),
        demo_003=running(cache, THREE, stream=third, offset=third.offset) if third else silent(cache, THREE, 0.3),
    )
    assert led_by(cache, view) == leads


def test_time_that_passes_after_the_end_does_not_count() -> None:
    """A replica that was busy answers at last: what it has is what it had."""
    cache = group(2)
    known = decided(cache, healthy(cache, demo_001=gone(), demo_002=silent(cache, TWO, 0.3)))
    assert [e.primary for e in shard(known.decided).ended] == [ONE]
    assert led_by(known, healthy(known, demo_001=gone()), moment=later(600)) == TWO


def test_what_is_known_of_the_end_is_kept_when_its_keeper_is_another_and_its_node_another_process() -> None:
    cache = group(2)
    cache, _ = settled(cache, healthy(cache, demo_001=gone(), demo_002=silent(cache, TWO, 0.3)))
    assert cache.node(ONE).incarnation == 2  # type: ignore[union-attr]
    empty = running(cache, ONE, role="replica", follows=None, has_history=False, offset=0, heard=(), lead_order=0)
    view = healthy(cache, demo_001=empty, demo_002=running(cache, TWO, heard=()))
    assert led_by(cache, view, moment=later(600)) == TWO
    behind = healthy(cache, demo_001=empty, demo_002=running(cache, TWO, heard=(), offset=400))
    assert led_by(cache, behind, moment=later(600)) is None


def test_the_words_of_another_boot_say_nothing() -> None:
    cache = group(2)
    before = tuple(replace(h, asked_at=Moment("before", h.asked_at.seconds)) for h in gone().heard)
    assert led_by(cache, healthy(cache, demo_001=gone(said=before))) is None


def test_of_several_that_can_be_shown_to_have_it_the_one_with_most_leads() -> None:
    cache = group()
    view = healthy(cache, demo_001=gone(), demo_002=running(cache, TWO, offset=991), demo_003=running(cache, THREE, offset=990))
    assert led_by(cache, view) == TWO


def test_a_replica_that_hangs_is_waited_for_only_until_the_user_can_be_asked() -> None:
    cache = group()
    behind = running(cache, THREE, offset=10)
    busy = healthy(cache, demo_001=gone(), demo_002=silent(cache, TWO, 0.3), demo_003=behind)
    after, _ = settled(cache, busy)
    assert (after.decided.refusals, shard(after.decided).primary) == ((), ONE)
    stopped = healthy(cache, demo_001=gone(), demo_002=silent(cache, TWO, 0.3, process="frozen"), demo_003=behind)
    assert led_by(cache, stopped) is None


# -- what is said, and what goes on


def test_a_refusal_says_what_may_be_lost_since_when_and_is_no_available_cache() -> None:
    cache = group(2)
    view = healthy(cache, demo_001=gone(said=heard((60.0, 1000))))
    after, answer = settled(cache, view)
    assert asked(cache, view) == (
        "demo-001 is gone, and demo-002 cannot be shown to have what demo-001 acknowledged since 2030-01-02 11:59:00 UTC "
        "(demo-001 may have gone on for 60 s after it was last heard). It is not promoted by itself: "
        "`cachekeep failover demo --allow-data-loss` accepts the loss"
    )
    empty = running(after, ONE, role="replica", follows=None, has_history=False, offset=0, heard=(), lead_order=0)
    one, two = after.decided.nodes
    reader = shard(after.decided).reader_address or ""
    empty, stale = (
        replace(empty, bound=frozenset({one.address})),
        running(after, TWO, link_up=False, bound=frozenset({two.address, reader})),
    )
    seen = healthy(after, demo_001=empty, demo_002=stale)
    after, answer = settled(after, seen)
    told = condition(Situation(after, seen, NOW, MOMENT, Policy()), answer)
    assert (told.status, told.refused) == ("modifying", True)
    assert not any(n.in_sync for n in told.nodes), "nobody vouches for anybody"


@pytest.mark.parametrize(
    ("said", "held", "doubt", "why"),
    [
        (
            (),
            1000,
            "unheard",
            "what demo-001 acknowledged since 2030-01-02 12:00:00 UTC (nobody who is still here has heard demo-001 at its end)",
        ),
        (((0.2, 1000), (9.2, 500)), 600, "behind", "acknowledged since 2030-01-02 11:59:50 UTC (it lacks 400 bytes at least)"),
        (((0.2, 1000),), 600, "behind", "what demo-001 acknowledged (it lacks 400 bytes at least)"),
        (
            ((0.2, Stream("x", 1000)),),
            600,
            "another history",
            "what demo-001 acknowledged (it holds another history than demo-001 wrote)",
        ),
    ],
)
def test_why_nobody_can_be_shown_to_have_it(said: Any, held: int, doubt: str, why: str) -> None:
    cache = group(2)
    view = healthy(cache, demo_001=gone(said=heard(*said)), demo_002=running(cache, TWO, offset=held))
    after, _ = settled(cache, view)
    assert why in asked(cache, view)
    assert [r.doubt for r in after.decided.refusals] == [doubt]


def test_consent_is_used_up_by_the_one_who_leads_by_it() -> None:
    cache = group(2, shards={"accept_stale": True})
    view = healthy(cache, demo_001=gone(said=()))
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    led = shard(answer.decided)
    assert (led.primary, led.accept_stale, led.ended) == (TWO, False, ())


@pytest.mark.parametrize(
    ("policy", "said", "held", "leads"),
    [
        (Policy(loss_budget_seconds=10), ((9.0, 1000),), 1000, TWO),
        (Policy(loss_budget_seconds=10), ((11.0, 1000),), 1000, None),
        (Policy(loss_budget_seconds=10), ((0.2, 1000), (9.0, 500)), 600, TWO),
        (Policy(loss_budget_seconds=10), ((0.2, 1000), (11.0, 500)), 600, None),
        (Policy(loss_budget_seconds=10), (), 1000, None),
        (Policy(loss_budget_bytes=100), ((0.2, 1000),), 950, TWO),
        (Policy(loss_budget_bytes=100), ((0.2, 1000),), 850, None),
        (Policy(loss_budget_bytes=100), ((9.0, 1000),), 1000, None),  # who knows how many bytes came after that
        (Policy(loss_budget_bytes=100), (), 1000, None),
        (Policy(loss_budget_bytes=100), ((0.2, Stream("x", 1000)),), 1000, None),
    ],
)
def test_a_loss_budget_is_held_to_what_was_heard(policy: Policy, said: Any, held: int, leads: str | None) -> None:
    """And not to how long the replica's link has been down: one that stalls sees that only when it goes on."""
    cache = group(2)
    second = running(cache, TWO, offset=held, link_up=False)
    view = healthy(cache, demo_001=gone(said=heard(*said)), demo_002=second)
    answer = step(cache, view, policy)
    assert led_by(cache, view, policy) == leads
    if leads:
        assert isinstance(answer, Decide)
        assert [e.message for e in answer.events] == [answer.because]
        assert "within the loss budget" in answer.because


# -- somebody who may have led unseen


def successor(told: int | None, said: Any, held: Any = 1000) -> tuple[Cache, View]:
    """``demo-002`` was decided on (order 2) when ``demo-001`` was lost, and is gone; ``demo-003`` had all of ``demo-001``."""
    over = Ended(primary=ONE, order=1, at=later(-600), heard=heard((600.2, 1000)))
    known = Confirmed(primary=ONE, order=1, nodes=frozenset({TWO, THREE}))
    cache = group(shards={"primary": TWO, "order": 2, "ended": (over,)})
    lead = replace(shard(cache.decided), confirmed=known)
    cache = replace(cache, decided=replace(cache.decided, shards=(lead,)))
    stream = held if isinstance(held, Stream) else Stream("a", held)
    third = running(cache, THREE, stream=stream, offset=stream.offset)
    lost = gone(said=heard(*said), lead_order=told)
    return cache, healthy(cache, demo_001=gone(), demo_002=lost, demo_003=third)


@pytest.mark.parametrize(
    ("told", "said", "held", "leads"),
    [
        (1, (), 1000, THREE),  # it was never told, so it has not led: however long ago that is
        (1, (), 900, None),
        (2, (), 1000, None),  # it may have led, alone, and nobody has heard it
        (None, (), 1000, None),
        (2, ((0.2, 1000),), 1000, THREE),  # it had not begun when it was heard a moment ago
        (2, ((0.2, 1001),), 1000, THREE),  # and what it had more was on its way from the one before
        (2, ((9.0, 1000),), 1000, None),
        (2, ((0.2, Stream("b", 1000, "a", 1000)),), 1000, THREE),
        (2, ((0.2, Stream("b", 1100, "a", 1000)),), 1000, None),
        (2, ((0.2, Stream("b", 1100, "a", 1000)),), Stream("b", 1100, "a", 1000), THREE),
        (2, ((0.2, Stream("b", 1100, "a", 1000)), (0.6, Stream("b", 1050, "a", 1000))), Stream("b", 1070, "a", 1000), THREE),
    ],
)
def test_in_sync_with_the_one_before_is_enough_only_if_the_next_has_not_led(
    told: int | None, said: Any, held: Any, leads: str | None
) -> None:
    assert led_by(*successor(told, said, held)) == leads


def moved(told: int, said: Any, **giver: Any) -> tuple[Cache, View]:
    """A hand-over (order 2) in which ``demo-001`` has stepped down, and ``demo-002`` is gone."""
    cache = group(2, shards={"change": Move(to=TWO), "order": 2})
    down = running(cache, ONE, role="replica", follows=None, link_up=None, **giver)
    return cache, healthy(cache, demo_001=down, demo_002=gone(said=heard(*said), lead_order=told))


@pytest.mark.parametrize(
    ("told", "said", "leads"),
    [
        (0, (), True),
        (2, ((0.3, 1000),), True),
        (2, (), False),
        (2, ((9.0, 1000),), False),
        (2, ((0.3, Stream("b", 1100, "a", 1000)),), False),
    ],
)
def test_a_giver_leads_again_only_if_the_taker_is_known_to_have_taken_nothing(told: int, said: Any, leads: bool) -> None:
    cache, view = moved(told, said)
    after, answer = settled(cache, view)
    assert any(isinstance(e, Promote) for e in (answer.stages[0] if isinstance(answer, Act) else ())) is leads
    assert (not after.decided.refusals) is leads
    consent = with_shard_of(after.decided, accept_stale=True)
    after, answer = settled(replace(after, decided=consent), view)
    assert isinstance(answer, Act)
    assert not shard(after.decided).accept_stale or leads


def with_shard_of(of: Decided, **changes: Any) -> Decided:
    return replace(of, shards=(replace(shard(of), **changes),))


def test_a_giver_that_leads_on_is_not_asked_about_its_taker() -> None:
    """It had not stepped down, so the taker has not led; and from now on its order is no later one."""
    cache = group(shards={"change": Move(to=TWO), "order": 2})
    after, _ = settled(cache, healthy(cache, demo_002=gone(lead_order=2, said=())))
    assert (shard(after.decided).lead_order, shard(after.decided).in_sync) == (2, {THREE})
    assert led_by(after, healthy(after, demo_001=gone(), demo_002=gone(2, lead_order=2, said=()))) == THREE


def test_who_leads_by_a_later_order_is_not_overthrown() -> None:
    """The move was called off, and clients have written to the taker since."""
    cache = group(shards={"order": 2, "lead_order": 1})
    down = running(cache, ONE, role="replica", follows=None, link_up=None)
    taken = running(cache, TWO, role="primary", follows=None, link_up=None, lead_order=2, stream=Stream("b", 1100, "a", 1000))
    answer = step(cache, healthy(cache, demo_001=down, demo_002=taken))
    assert isinstance(answer, Decide)
    assert shard(answer.decided).primary == TWO
    earlier = running(cache, TWO, role="primary", follows=None, link_up=None, lead_order=1)
    answer = step(cache, healthy(cache, demo_001=down, demo_002=earlier))
    assert answer.because == "demo-002 leads but is not the primary"


@pytest.mark.parametrize(("seconds", "others", "stopped"), [(1.0, 1000, False), (20.0, 1000, True), (20.0, 400, False)])
def test_who_was_let_lead_and_does_not_answer_is_stopped_before_another_does(seconds: float, others: int, stopped: bool) -> None:
    cache = group(shards={"order": 2, "lead_order": 1})
    told = replace(silent(cache, TWO, seconds), lead_order=2)
    view = healthy(cache, demo_001=gone(at=-seconds), demo_002=told, demo_003=running(cache, THREE, offset=others))
    after, answer = settled(cache, view)
    assert shard(after.decided).primary == ONE
    assert after.node(TWO).condemned is stopped  # type: ignore[union-attr]
    assert isinstance(answer, Act if stopped else Wait)


# -- a primary that hangs


def test_a_hung_primary_is_stopped_only_for_one_who_has_what_it_has() -> None:
    cache = group()
    hung = silent(cache, ONE, 20.0)
    answer = step(cache, healthy(cache, demo_001=hung))
    assert isinstance(answer, Decide)
    assert answer.decided.nodes[0].condemned
    for unheard in (replace(hung, heard=()), replace(hung, heard=heard((60.0, 1000)))):
        answer = step(cache, healthy(cache, demo_001=unheard))
        assert isinstance(answer, Wait)
        assert answer.refused
        assert "no replica can be shown to have what it has" in answer.because


@pytest.mark.parametrize(
    ("view", "why"),
    [
        ({}, "demo-001 answers again: it is not stopped"),
        (
            {"answer": None, "process": "frozen", "heard": ()},
            "demo-001 may hold what nobody can be shown to have: it is not stopped",
        ),
    ],
)
def test_one_that_was_to_be_stopped_before_its_keeper_went_away_is_judged_anew(view: dict[str, Any], why: str) -> None:
    cache = group()
    condemned = replace(cache.decided.nodes[0], fate=Condemned(since=later(-3600)))
    cache = replace(cache, decided=with_nodes(cache.decided, [condemned]))
    answer = step(cache, healthy(cache, demo_001=running(cache, ONE, **view)))
    assert isinstance(answer, Decide)
    assert answer.because == why
    assert not answer.decided.nodes[0].condemned


def test_one_that_the_user_gave_up_is_stopped_whatever_it_holds() -> None:
    cache = group(shards={"accept_stale": True})
    given_up = replace(cache.decided.nodes[0], due="reboot", fate=Halted())
    cache = replace(cache, decided=with_nodes(cache.decided, [given_up]))
    frozen = replace(silent(cache, ONE, 60, process="frozen"), heard=())
    answer = step(cache, healthy(cache, demo_001=frozen))
    assert isinstance(answer, Act)
    assert isinstance(answer.stages[0][0], Stop)


# -- of which lead it is true


@pytest.mark.parametrize(
    ("primary", "order", "known"),
    [(ONE, 1, {TWO}), (TWO, 1, set()), (ONE, 2, set())],
    ids=["the same lead", "another primary", "the same node, started again"],
)
def test_in_sync_is_true_of_one_lead_only(primary: str, order: int, known: set[str]) -> None:
    lead = replace(shard(group(2).decided), primary=primary, lead_order=order)
    lead = replace(lead, confirmed=Confirmed(primary=ONE, order=1, nodes=frozenset({TWO})))
    assert lead.in_sync == known


def test_a_hand_over_goes_on_with_who_is_in_sync_with_the_giver() -> None:
    """Its order is a later one; its primary is not."""
    cache = group(shards={"change": Move(to=TWO), "order": 5, "lead_order": 3})
    answer = step(cache, healthy(cache))
    assert isinstance(answer, Act)
    assert isinstance(answer.stages[0][0], HandOver)


def test_replicas_are_read_from_until_the_next_primary_leads_and_then_when_they_follow_it() -> None:
    cache = group()
    led = decided(cache, healthy(cache, demo_001=gone()))
    view = healthy(cache, demo_001=gone())
    s = Situation(led, view, NOW, MOMENT, Policy())
    assert [n.name for n in led.decided.nodes if s.serving(shard(led.decided), n)] == [TWO, THREE]
    leads = shard(led.decided).primary or ""
    now = replace(view, nodes=view.nodes | {leads: running(led, leads, role="primary", follows=None, replicas=())})
    s = Situation(led, now, NOW, MOMENT, Policy())
    assert [n.name for n in led.decided.nodes if s.serving(shard(led.decided), n)] == []


@pytest.mark.parametrize(("seconds", "sure"), [(ENGINE_SECONDS, True), (ENGINE_SECONDS + 0.1, False)])
def test_in_cluster_mode_the_engines_may_have_elected_somebody_since(seconds: float, sure: bool) -> None:
    cache = group(2, cluster_mode="enabled")
    cache = replace(
        cache,
        decided=replace(cache.decided, shards=(shard_with(shard(cache.decided), primary_address=None, reader_address=None),)),
    )
    assert cache.clustered
    over = (Ended(primary=ONE, order=1, at=MOMENT, heard=heard((0.2, 1000))),)
    s = Situation(cache, healthy(cache), NOW, later(seconds), Policy())
    assert proven(s, over, cache.decided.nodes[1]) is sure
