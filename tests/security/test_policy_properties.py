"""What holds of every policy and every request."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.security.policies import KINDS, USER, case, decide, document, statement

CHANCE = st.integers(0, 2**32).map(Random)
MANY = settings(max_examples=300, deadline=None)


def _with(each: dict[str, Any], kind: str, added: dict[str, Any]) -> dict[str, Any]:
    """The same case with one more policy of that kind."""
    more = copy.deepcopy(each)
    more["policies"][kind].append(added)
    return more


@MANY
@given(CHANCE, st.sampled_from(KINDS))
def test_one_more_deny_never_allows_more(chance: Random, kind: Any) -> None:
    each = case(chance)
    more = _with(each, kind, {"Version": "2012-10-17", "Statement": [statement(chance, kind) | {"Effect": "Deny"}]})
    if decide(more).allowed:
        assert decide(each).allowed


@MANY
@given(CHANCE, st.sampled_from(["boundary", "session"]))
def test_a_first_ceiling_never_allows_more(chance: Random, kind: Any) -> None:
    each = case(chance)
    each["policies"][kind] = []
    if decide(_with(each, kind, document(chance, kind))).allowed:
        assert decide(each).allowed


@MANY
@given(CHANCE)
def test_ceilings_alone_allow_nothing(chance: Random) -> None:
    each = case(chance, kinds=("boundary", "session"))
    each["policies"]["identity"] = []
    assert not decide(each).allowed


@MANY
@given(CHANCE, st.sampled_from(KINDS))
def test_one_more_allow_never_denies_more(chance: Random, kind: Any) -> None:
    """But for the first of a ceiling, which is one from then on."""
    each = case(chance)
    added = {"Version": "2012-10-17", "Statement": [statement(chance, kind) | {"Effect": "Allow"}]}
    if (kind in ("identity", "resource") or each["policies"][kind]) and decide(each).allowed:
        assert decide(_with(each, kind, added)).allowed


@MANY
@given(CHANCE)
def test_order_is_of_no_account(chance: Random) -> None:
    each = case(chance)
    other = copy.deepcopy(each)
    for policies in other["policies"].values():
        chance.shuffle(policies)
        for policy in policies:
            chance.shuffle(policy["Statement"])
    mine, its = decide(each), decide(other)
    assert (mine.allowed, mine.by, mine.explicit) == (its.allowed, its.by, its.explicit)


@MANY
@given(CHANCE)
def test_who_is_named_nowhere_has_no_rights(chance: Random) -> None:
    each = case(chance, kinds=("resource",)) | {"principal": USER}
    each["policies"]["identity"] = []
    for policy in each["policies"]["resource"]:
        for row in policy["Statement"]:
            row["Principal"] = {"AWS": USER.replace("bob", "eve")}
    assert not decide(each).allowed


@MANY
@given(CHANCE)
def test_a_decision_names_the_policies_that_made_it(chance: Random) -> None:
    """Whatever is allowed or explicitly denied is so by some policy; without these it is not."""
    each = case(chance)
    verdict = decide(each)
    assert bool(verdict.matched) or not (verdict.allowed or verdict.explicit)
    if verdict.explicit:
        names = {policy.name for policy in verdict.matched}
        for kind, policies in each["policies"].items():
            each["policies"][kind] = [p for number, p in enumerate(policies) if f"{kind}.{number}" not in names]
        assert decide(each).by != verdict.by or not decide(each).explicit
