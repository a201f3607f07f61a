"""Guards that nothing noticed once: each, taken away as ``make mutate`` does it, with the tables that notice."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tests.plan import test_guards as tables
from tools.mutants import Mutant, mutants
from tools.mutate import SOURCE, apply, function_of


@dataclass(frozen=True)
class Guard:
    """What is done without it, the mutant (module, function, beginning of its words), and the table."""

    without: str
    module: str
    function: str
    words: str
    table: Callable[[], None]

    def mutant(self) -> Mutant:
        """The only one of these words."""
        source = (SOURCE / f"{self.module.replace('.', '/')}.py").read_text()
        (found,) = (m for m in mutants(self.module, source) if m.function == self.function and m.what.startswith(self.words))
        return found

    def take_away(self, patch: pytest.MonkeyPatch) -> None:
        """Until the end of the test."""
        function = function_of(importlib.import_module(f"cachekeep.{self.module}"), self.function)
        patch.setattr(function, "__code__", function.__code__)
        apply(self.mutant(), SOURCE / f"{self.module.replace('.', '/')}.py")


GUARDS = (
    Guard(
        "the user's consent to a loss is never used up",
        "plan.lead.promote",
        "take_over",
        "without `accept_stale=False`",
        tables.test_a_consent_is_used_up_by_the_promotion_that_it_was_given_for,
    ),
    Guard(
        "a taker out of sync is handed to",
        "plan.lead.promote",
        "_move",
        "never `if taker.name not in shard.in_sync`",
        tables.test_a_taker_that_has_fallen_out_of_sync_is_not_handed_to,
    ),
    Guard(
        "an empty primary does not wait for silent nodes",
        "plan.lead.promote",
        "_first_promotion",
        "never `if unknown",
        tables.test_an_empty_primary_waits_for_a_silent_node_that_may_hold_data,
    ),
    Guard(
        "in-sync replicas that do not answer yet are not waited for",
        "plan.lead.promote",
        "succeed",
        "never `if waiting",
        tables.test_an_in_sync_replica_that_does_not_answer_yet_is_waited_for,
    ),
    Guard(
        "one witness of several suffices",
        "plan.lead.judge",
        "why_hung",
        "`any(",
        tables.test_a_user_s_word_does_not_make_a_primary_lost_that_one_in_sync_replica_reaches,
    ),
    Guard(
        "the lead returns to a node out of sync",
        "plan.lead.promote",
        "_transfer",
        "without `back.name in shard.in_sync`",
        tables.test_the_lead_returns_only_to_a_node_that_is_in_sync,
    ),
    Guard(
        "the link need not be up by the replica's word",
        "plan.reach.followers",
        "in_sync",
        "without `v.link_up is True`",
        tables.test_a_replica_whose_own_link_is_down_is_not_in_sync_whatever_its_primary_says,
    ),
    Guard(
        "a silent node joins",
        "plan.reach.followers",
        "in_sync",
        "without `node.name in known`",
        tables.test_a_silent_replica_does_not_join,
    ),
    Guard(
        "a silent node stays in sync for ever",
        "plan.reach.followers",
        "in_sync",
        "without `v.waiting_seconds <",
        tables.test_a_silent_replica_stays_in_sync_for_a_while_and_no_longer,
    ),
    Guard(
        "frozen replicas are stopped although nobody leads",
        "plan.reach.followers",
        "revive",
        "never `if primary is None",
        tables.test_frozen_replicas_are_left_alone_while_nobody_leads,
    ),
    Guard(
        "a node that loads counts as alive",
        "plan.situation",
        "Situation.alive",
        "without `v.answering is True`",
        tables.test_a_replica_that_loads_is_not_promoted,
    ),
    Guard(
        "the next node restarts while the last is not back",
        "plan.change.rollout",
        "restart",
        "without `not n.announced`",
        tables.test_the_next_node_restarts_when_the_last_is_back,
    ),
    Guard(
        "the next node restarts while the last is being stopped",
        "plan.change.rollout",
        "restart",
        "without `n.condemned`",
        tables.test_the_next_node_does_not_restart_while_the_last_is_being_stopped,
    ),
)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.without.replace(" ", "-"))
def test_its_table_notices(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.table()
    guard.take_away(monkeypatch)
    with pytest.raises(AssertionError):
        guard.table()
