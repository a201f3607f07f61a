"""Cluster mode: what only one node holds is not thrown away by what a user wants done meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import MOMENT, gone, heard, later, silent, step
from tests.plan.test_cluster_plan import ONE, OTHER, OTHERS_REPLICA, TWO, cluster, first, seen, settled, shard

from cachekeep.engines.launch import cluster_node_id, nodes_conf
from cachekeep.model import (
    Act,
    Cache,
    Decide,
    Election,
    Errand,
    Flight,
    Move,
    MoveSlots,
    Own,
    Refusal,
    Replicate,
    Resharding,
    Step,
    Stop,
    Stream,
    View,
    Wait,
)


def with_node(cache: Cache, name: str, **changes: Any) -> Cache:
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in cache.decided.nodes)
    return replace(cache, decided=replace(cache.decided, nodes=nodes))


def without_members(cache: Cache, *names: str) -> Cache:
    """The user wants these no longer."""
    shards = tuple(replace(w, members=tuple(m for m in w.members if m.name not in names)) for w in cache.wanted.shards)
    return replace(cache, wanted=replace(cache.wanted, shards=tuple(w for w in shards if w.members)))


def leaderless(cache: Cache, view: View) -> tuple[Cache, View]:
    """The first shard's primary is gone, and nobody can be elected: another primary is not known to be stopped."""
    return cache, seen(view, demo_0001_001=gone(), demo_0002_001=silent(cache, OTHER, 0.1))


def test_the_only_holder_does_not_restart_while_nobody_leads() -> None:
    cache, view = leaderless(*settled(2))
    answer = step(with_node(cache, TWO, due="reboot"), view)
    assert isinstance(answer, Wait)
    assert answer.refused
    nodes = plan_until_wait(with_node(cache, TWO, due="reboot"), view).decided.nodes
    assert not any(n.condemned for n in nodes)


def plan_until_wait(cache: Cache, view: View) -> Cache:
    """The cache after all that can be decided without another look."""
    for _ in range(20):
        answer = step(cache, view)
        if not isinstance(answer, Decide):
            return cache
        cache = replace(cache, decided=answer.decided)
    pytest.fail(f"decisions led nowhere: {answer.because}")


def test_the_only_holder_is_not_sent_away_while_nobody_leads() -> None:
    """Wanted or not: first its shard has a leader, then it goes."""
    cache, view = leaderless(*settled(2))
    after = plan_until_wait(without_members(cache, TWO), view)
    assert not any(n.leaving for n in after.decided.nodes)
    leaving = with_node(without_members(cache, TWO), TWO, leaving=True)
    assert isinstance(step(plan_until_wait(leaving, view), view), Wait)


def test_one_that_hangs_may_restart_even_so() -> None:
    cache, view = settled(2)
    view = seen(view, demo_0001_001=gone(), demo_0001_002=silent(cache, TWO, 9.0, process="frozen"))
    after = plan_until_wait(with_node(cache, TWO, due="reboot"), view)
    assert [n.name for n in after.decided.nodes if n.condemned] == [TWO]


def test_two_shards_that_are_refused_are_both_told_once() -> None:
    """Each took the other's place once, for ever: the keeper did nothing else."""
    cache, view = settled(3)
    view = seen(view, demo_0001_001=gone(said=()), demo_0002_001=gone(said=()))
    after = plan_until_wait(cache, view)
    assert [(r.shard, r.lost, r.doubt) for r in after.decided.refusals] == [("0001", ONE, "unheard"), ("0002", OTHER, "unheard")]


def test_consent_is_not_kept_for_a_shard_that_has_its_leader() -> None:
    """Or it would be used years later, when nobody remembers."""
    cache, view = settled(3)
    decided = replace(cache.decided, refusals=(Refusal(shard="0001", lost=ONE, best=TWO, doubt="unheard"),))
    errand = Errand(serial=1, kind="promote-stale", shard="0001")
    cache = replace(cache, decided=decided, wanted=replace(cache.wanted, errands=(errand,)))
    cache = shard(cache, primary=ONE)
    view = seen(view, demo_0002_001=silent(cache, OTHER, 0.1))
    assert not any(x.accept_stale for x in plan_until_wait(cache, view).decided.shards)


def test_a_primary_that_leaves_stays_while_its_shard_has_slots() -> None:
    """First it was not wanted, then its whole shard was not: its slots went with it."""
    cache, view = settled(2)
    cache = without_members(with_node(cache, ONE, leaving=True), ONE, TWO)
    answer = step(cache, view)
    assert "process and files go" not in answer.because
    while isinstance(answer, Decide):
        cache = replace(cache, decided=answer.decided)
        answer = step(cache, view)
    assert any(isinstance(e, MoveSlots) and e.source == ONE for e in answer.stages[0])  # type: ignore[union-attr]


def test_nobody_is_told_to_forget_whom_it_follows() -> None:
    """The engine refuses that; and while it was tried again and again, nothing that comes after it was done."""
    cache, view = settled(3)
    cache = with_node(without_members(cache, ONE), ONE, leaving=True)
    consent = Errand(serial=1, kind="promote-stale", shard="0001")
    cache = replace(cache, wanted=replace(cache.wanted, errands=(consent,)))
    after = plan_until_wait(cache, seen(view, demo_0001_001=gone(said=())))
    assert after.decided.shards[0].moving_to == TWO


def test_who_follows_a_stranger_is_told_whom_to_follow_before_it_forgets_it() -> None:
    cache, view = settled(2)
    knows = view.node(TWO).cluster.knows | {"f" * 40}  # type: ignore[union-attr]
    view = seen(view, demo_0001_002={"follows": "127.0.0.99", **cluster(view, TWO, knows=knows)})
    cache = replace(cache, decided=replace(cache.decided, intruded_at=MOMENT))
    assert first(step(cache, view)) == Replicate(TWO, ONE, 1)


def test_a_new_replica_is_told_of_the_primary_that_is_about_to_leave() -> None:
    """It would follow a node that its file does not name."""
    cache, _ = settled(2)
    cache = with_node(cache, OTHER, leaving=True)
    primary, replica = (n for n in cache.decided.nodes if n.shard == "0002")
    text = nodes_conf(cache, replica)
    assert text.count(f"{cluster_node_id(cache, primary)} ") == 2  # its own line, and the line of the replica that follows it
    assert replica.name == OTHERS_REPLICA


def test_an_order_that_is_greater_than_those_decided_is_outrun() -> None:
    """The node would refuse all that it is told. A shard that is added again has the names of the one that was removed."""
    cache, view = settled(2)
    answer = step(cache, seen(view, demo_0001_002={"last_order": 7}))
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].order == 8
    assert answer.because == f"{TWO} has seen order 7 of shard 0001: the next one is 8"


def unowned(seconds_silent: float | None = None) -> tuple[Cache, View]:
    """The first primary has lost slots 0 to 99: nobody owns them."""
    cache, view = settled(2)
    mine = cache.decided.shards[0].owned
    cache = shard(cache, owned=((100, mine[0][1]),))
    view = seen(view, demo_0001_001={"last_order": 1, **cluster(view, ONE, slots=((100, mine[0][1]),))})
    if seconds_silent is not None:
        view = seen(view, demo_0002_002=silent(cache, OTHERS_REPLICA, seconds_silent))
    return cache, view


def test_slots_that_move_while_shards_are_looked_at_are_not_nobodys() -> None:
    """One shard was looked at before they came, the other after they had gone."""
    cache, view = unowned()
    move = MoveSlots(OTHER, ONE, ((0, 99),), 1, 1, 0.5)
    flight = Flight(effect=move, because="slots move", since_seconds=0.2, left_seconds=2.3)
    assert "belong to nobody" not in step(cache, replace(view, flights=(flight,))).because


def test_slots_of_nobody_are_given_by_an_order_of_their_own_and_everybody_is_asked_first() -> None:
    cache, view = unowned()
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].order == 2
    assert answer.because == "100 slots belong to nobody: their shards are to get them"
    answer = step(replace(cache, decided=answer.decided), view)
    assert first(answer) == Own(ONE, ((0, 99),), 2, (TWO, OTHER, OTHERS_REPLICA))


def test_slots_of_nobody_wait_for_whoever_may_own_them_after_all() -> None:
    answer = step(*unowned(seconds_silent=1.0))
    assert isinstance(answer, Wait)
    assert answer.because == f"100 slots belong to nobody, but {OTHERS_REPLICA} might know better"


def test_consent_does_not_wait_for_a_move_that_waits_for_it() -> None:
    """The move of one shard waited for half open slots, these for the leader of another, and its election for the consent."""
    cache, view = settled(3)
    source = cluster_node_id(cache, cache.decided.nodes[0])
    consent = Errand(serial=1, kind="promote-stale", shard="0001")
    cache = replace(cache, wanted=replace(cache.wanted, errands=(consent,)))
    one, two, *rest = cache.decided.shards
    shards = (one, replace(two, change=Move(to=OTHERS_REPLICA), order=2), *rest)
    cache = replace(cache, decided=replace(cache.decided, reshard=Resharding(slots=1), shards=shards))
    view = seen(view, demo_0001_001=gone(said=()), demo_0002_001=cluster(view, OTHER, importing={7: source}))
    assert plan_until_wait(cache, view).decided.shards[0].moving_to == TWO


def test_a_move_to_who_took_over_nothing_is_called_off() -> None:
    """It had not heard what it would lead. It follows again, and the user's next wish is not kept waiting."""
    cache, view = settled(2)
    cache = shard(cache, change=Move(to=TWO), order=2)
    view = seen(view, demo_0001_002={"role": "primary", "follows": None, "link_up": None})
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because == f"the lead of shard 0001 does not go to {TWO}: {TWO} leads, but not what {ONE} does"
    after = plan_until_wait(cache, view)
    assert first(step(after, view)) == Replicate(TWO, ONE, 2)


def test_a_shard_without_slots_needs_no_consent() -> None:
    """What owns no slot holds nothing."""
    cache, view = settled(3)
    cache = shard(cache, slots=(), owned=())
    view = seen(view, demo_0001_001=gone(said=()))
    assert plan_until_wait(cache, view).decided.shards[0].moving_to == TWO
    half_open = replace(cache, decided=replace(cache.decided, reshard=Resharding(slots=1)))  # some may be on their way in
    assert plan_until_wait(half_open, view).decided.refusals


def test_nobody_is_introduced_to_who_does_not_answer() -> None:
    """It was tried every few milliseconds."""
    cache, view = settled(2)
    lost = cluster_node_id(cache, cache.decided.nodes[3])
    knows = view.node(ONE).cluster.knows - {lost}  # type: ignore[union-attr]
    view = seen(view, demo_0001_001=cluster(view, ONE, knows=knows), demo_0002_002=silent(cache, OTHERS_REPLICA, 1.0))
    assert not isinstance(step(cache, view), Act)


# -- who may do late what it was told


def one_shard(nodes: int = 3) -> tuple[Cache, View]:
    """The first shard of three has ``nodes`` nodes, all in sync; a third of them follows, too."""
    cache, view = settled(3)
    third = replace(cache.decided.nodes[1], name=THREE, address="127.77.9.9")
    nodes_ = (*cache.decided.nodes, third)
    cache = replace(cache, decided=replace(cache.decided, nodes=nodes_))
    cache = shard(cache, in_sync=frozenset({TWO, THREE}))
    return cache, replace(view, nodes=view.nodes | {THREE: view.nodes[TWO]})


THREE = "demo-0001-003"


def taking_over(seconds: float, **changes: Any) -> tuple[Cache, View]:
    """The second is to take over without a vote, and does not answer."""
    cache, view = one_shard()

    cache = shard(cache, change=Election(to=TWO, lost=ONE, since=later(-seconds), seize=True), order=2, **changes)
    return cache, seen(view, demo_0001_001=gone(), demo_0001_002=silent(cache, TWO, 2.0))


def test_who_was_to_take_over_without_a_vote_is_stopped_before_another_does() -> None:
    assert stopped_by(step(*taking_over(0.5))) == []
    cache, view = taking_over(2.0)
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because == (
        f"{TWO} was to take over and does not answer: it is stopped for certain before {THREE} or another does"
    )
    cache = replace(cache, decided=answer.decided)
    assert first(step(cache, view)) == Stop(TWO)
    answer = step(cache, seen(view, demo_0001_002=gone(lead_order=1)))
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].moving_to is None
    answer = step(cache, seen(view, demo_0001_002=gone(lead_order=2)))
    assert isinstance(answer, Decide)
    assert answer.because == f"{TWO} may have taken shard 0001 over from {ONE}, and is gone"
    led = answer.decided.shards[0]
    assert (led.primary, led.lead_order, led.order, [e.primary for e in led.ended]) == (TWO, 2, 3, [ONE, TWO])


def test_it_is_not_stopped_where_nobody_else_could_lead() -> None:
    cache, view = taking_over(2.0)
    answer = step(cache, seen(view, demo_0001_003={"stream": Stream("a", 1)}))
    assert stopped_by(answer) == []
    assert not isinstance(answer, Decide) or answer.decided.shards[0].moving_to == TWO


def stopped_by(answer: Step) -> list[str]:
    """Who is to be stopped for certain from now on."""
    return [n.name for n in answer.decided.nodes if n.condemned] if isinstance(answer, Decide) else []


@pytest.mark.parametrize(
    ("taker", "stopped"),
    [
        ({"process": "frozen", "seconds": 0.1, "last_order": 2}, True),
        ({"process": "running", "seconds": 0.6, "last_order": 2}, True),
        ({"process": "running", "seconds": 0.1, "last_order": 2}, False),
        ({"process": "frozen", "seconds": 0.1, "last_order": 1}, False),  # it was not told
    ],
)
def test_a_taker_that_was_told_and_hangs_is_stopped_while_the_giver_is_paused(taker: dict[str, Any], stopped: bool) -> None:
    cache, view = settled(3)
    cache = shard(cache, change=Move(to=TWO), order=2)
    hangs = replace(silent(cache, TWO, taker["seconds"], process=taker["process"]), last_order=taker["last_order"])
    answer = step(cache, seen(view, demo_0001_002=hangs))
    assert stopped_by(answer) == ([TWO] if stopped else [])


def test_a_taker_that_was_told_and_hangs_is_stopped_before_anybody_succeeds_a_giver_that_died() -> None:
    cache, view = one_shard()
    cache = shard(cache, change=Move(to=TWO), order=2)
    hangs = replace(silent(cache, TWO, 0.1), last_order=2)
    answer = step(cache, seen(view, demo_0001_001=gone(), demo_0001_002=hangs))
    assert stopped_by(answer) == [TWO]


def test_who_has_led_for_a_moment_is_succeeded_by_its_replica_not_by_the_giver_that_dropped_its_keys() -> None:
    cache, view = one_shard()
    cache = shard(cache, change=Move(to=TWO), order=2)
    emptied = cluster(view, ONE, slots=())
    view = seen(view, demo_0001_001=emptied, demo_0001_002=gone())
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.because == f"{TWO} may have taken shard 0001 over from {ONE}, and is gone"
    led = answer.decided.shards[0]
    assert (led.primary, led.lead_order, led.order, led.moving_to) == (TWO, 2, 3, None)
    cache = replace(cache, decided=answer.decided)
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].moving_to == THREE


def test_a_giver_that_owns_its_slots_leads_on_when_the_taker_dies() -> None:
    cache, view = one_shard()
    cache = shard(cache, change=Move(to=TWO), order=2)
    answer = step(cache, seen(view, demo_0001_002=gone()))
    assert answer.because == f"the lead of shard 0001 does not go to {TWO}: {TWO} is gone"


def test_a_giver_that_cannot_be_asked_when_the_taker_is_gone_is_waited_for() -> None:
    """It may have dropped its keys."""
    cache, view = one_shard()
    cache = shard(cache, change=Move(to=TWO), order=2)
    dead = replace(gone(), last_order=2)
    answer = step(cache, seen(view, demo_0001_001=silent(cache, ONE, 0.3), demo_0001_002=dead))
    assert not isinstance(answer, Decide) or answer.decided.shards[0].moving_to == TWO


def test_an_emptied_primary_is_succeeded_by_a_replica_that_followed_who_emptied_it() -> None:
    """It goes on counting, and has more bytes than anybody: those by which it dropped its keys."""
    cache, view = one_shard()
    two = cache.node(TWO)
    assert two is not None
    led = Stream("b", 1100, "a", 1000)
    view = seen(
        view,
        demo_0001_001={"stream": Stream("a", 5000), "role": "primary", **cluster(view, ONE, slots=())},
        demo_0001_002=gone(said=heard((0.2, led))),
        demo_0001_003={"follows": two.address, "link_up": False, "stream": led},
    )
    answer = step(cache, view)
    assert isinstance(answer, Decide)
    assert answer.decided.shards[0].primary == TWO
    assert plan_until_wait(cache, view).decided.shards[0].moving_to == THREE
    unwritten = seen(view, demo_0001_002=gone(said=heard((0.2, Stream("b", 1000, "a", 1000)))))
    assert plan_until_wait(cache, unwritten).decided.shards[0].moving_to == THREE


def test_a_taker_that_was_told_is_stopped_when_the_giver_hangs_too() -> None:
    cache, view = one_shard()
    cache = shard(cache, change=Move(to=TWO), order=2)
    told = replace(silent(cache, TWO, 0.6), last_order=2)
    answer = step(cache, seen(view, demo_0001_001=silent(cache, ONE, 6.0, process="frozen"), demo_0001_002=told))
    assert stopped_by(answer) == [TWO]
