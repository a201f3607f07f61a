"""The order of the rules, and who is asked."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from msgspec.structs import replace
from tests.plan.builders import group, memcached
from tests.plan.test_cluster_plan import settled

from cachekeep.model import Cache
from cachekeep.plan.planner import RULES, Applies, named, rules_of

NAMES = [named(row.rule) for row in RULES]
SAID = [
    (name, side, other)
    for name, row in zip(NAMES, RULES, strict=True)
    for side, others in re.findall(r"(before|after)((?:[^;:`]|`[\w.]+`)*)", row.why_here)
    for other in re.findall(r"`([\w.]+)`", others)
]


def test_there_is_a_row_for_each_rule_once_and_each_says_why_it_is_there() -> None:
    assert len(set(NAMES)) == len(RULES)
    assert all(re.match("(before|after) ", row.why_here) for row in RULES)
    assert {row.applies for row in RULES} == set(get_args(Applies))
    assert len(SAID) > 40


@pytest.mark.parametrize(("name", "side", "other"), SAID, ids=" ".join)
def test_what_is_said_of_the_order_is_so(name: str, side: str, other: str) -> None:
    first, second = (name, other) if side == "before" else (other, name)
    assert NAMES.index(first) < NAMES.index(second)


@pytest.mark.parametrize(
    ("cache", "asked", "others"),
    [
        (group(), "promote.lead", {"elect.lead", "endpoints.discovery"}),
        (settled(2)[0], "elect.lead", {"promote.lead", "starve.starve", "endpoints.discovery"}),
        (memcached(), "endpoints.discovery", {"promote.lead", "elect.lead", "followers.track"}),
    ],
    ids=["plain", "cluster", "memcached"],
)
def test_who_is_asked(cache: Cache, asked: str, others: set[str]) -> None:
    names = {named(rule) for rule in rules_of(cache)}
    assert {asked, "members.start"} <= names
    assert not {*others, "jobs.cancel"} & names
    gone = replace(cache, wanted=replace(cache.wanted, deleted=True))
    assert [named(rule) for rule in rules_of(gone)] == ["members.outrun", "jobs.cancel", "members.delete"]
