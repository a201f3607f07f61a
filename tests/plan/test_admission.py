"""Security groups as verdicts: rules and members in, doors out."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.plan.builders import group

from cachekeep.model import Cache
from cachekeep.model.security_group import ANY, EVERYBODY, SecurityGroup, SecurityGroupRule
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.plan.reach.admission import Door, doors

PORT = 6379


def rule(
    peer: str, low: int | None = PORT, high: int | None = None, *, protocol: str = "tcp", egress: bool = False
) -> SecurityGroupRule:
    if protocol == ANY:
        low = high = None
    return SecurityGroupRule(id="r", protocol=protocol, from_port=low, to_port=high or low, peer=peer, egress=egress)


OUT = rule(EVERYBODY[0], protocol=ANY, egress=True)
OPEN = tuple(rule(peer, protocol=ANY) for peer in EVERYBODY)


def sg(
    name: str, *rules: SecurityGroupRule, users: tuple[int, ...] = (), out: tuple[SecurityGroupRule, ...] = (OUT,)
) -> SecurityGroup:
    return SecurityGroup(name=name, group_name=name, description="", rules=(*rules, *out), users=users)


DEFAULT = sg("sg-default", rule("sg-default", protocol=ANY))


def seen(cache: Cache, *groups: SecurityGroup, default: SecurityGroup = DEFAULT, lenient: bool = False) -> tuple[Door, ...]:
    return doors([cache], {g.name: g for g in groups}, default, lenient=lenient)


def door(*groups: SecurityGroup, **more: Any) -> Door | None:
    """That of a cache in these groups, which is the same at each of its places."""
    first = groups[0].name
    cache = group(2, security_group_ids=(first,))
    found = seen(cache, *groups, **more)
    assert {d.address for d in found} in (set(), addresses_used(cache.decided))
    assert len({(d.everybody, d.users, d.barred, d.networks) for d in found}) <= 1
    assert {d.port for d in found} <= {PORT}
    return found[0] if found else None


def test_a_group_without_rules_lets_nobody_in() -> None:
    found = door(sg("sg-a"))
    assert found is not None
    assert not found.admits(33)
    assert not found.admits_from("10.0.0.1")


def test_who_lets_everybody_in_has_no_door() -> None:
    assert door(sg("sg-a", *OPEN)) is None
    assert door(sg("sg-a", rule("0.0.0.0/0", 6000, 7000))) is None
    assert door(sg("sg-a", rule("0.0.0.0/1"), rule("128.0.0.0/1"))) is None


@pytest.mark.parametrize(
    ("rules", "local", "near", "far"),
    [
        ((rule("127.0.0.0/8"),), True, False, False),
        ((rule("126.0.0.0/7"),), True, False, False),
        ((rule("127.0.0.1/32"),), False, False, False),  # any user may take that address
        ((rule("10.0.0.0/8"),), False, True, False),
        ((rule("10.0.0.0/8"), rule("10.1.0.0/16"), rule("127.0.0.0/8")), True, True, False),
        ((rule("0.0.0.0/0", PORT + 1),), False, False, False),
        ((rule("0.0.0.0/0", 1, PORT - 1),), False, False, False),
        ((rule("0.0.0.0/0", protocol="udp"),), False, False, False),
        ((rule("0.0.0.0/0", egress=True),), False, False, False),
        ((rule("::/0"),), False, False, False),  # of another family than the place
    ],
)
def test_blocks(rules: tuple[SecurityGroupRule, ...], local: bool, near: bool, far: bool) -> None:
    found = door(sg("sg-a", *rules))
    assert found is not None
    assert (found.admits(33), found.admits_from("10.1.2.3"), found.admits_from("192.0.2.1")) == (local, near, far)


def test_blocks_of_a_door_are_apart_from_each_other() -> None:
    """The kernel takes no interval within another."""
    found = door(sg("sg-a", rule("10.1.0.0/16"), rule("10.0.0.0/8"), rule("192.0.2.0/25"), rule("192.0.2.128/25")))
    assert found is not None
    assert found.networks == ("10.0.0.0/8", "192.0.2.0/24")


def test_the_rules_of_all_its_groups_count() -> None:
    cache = group(1, security_group_ids=("sg-a", "sg-b"))
    found = seen(cache, sg("sg-a", rule("10.0.0.0/8")), sg("sg-b", rule("192.0.2.0/24")))
    assert found
    assert all(d.networks == ("10.0.0.0/8", "192.0.2.0/24") for d in found)


def test_members_of_a_group_that_is_let_in() -> None:
    found = door(sg("sg-a", rule("sg-web")), sg("sg-web", users=(33, 34)), sg("sg-other", users=(35,)))
    assert found is not None
    assert (found.users, found.admits(35), found.networks) == (frozenset({33, 34}), False, ())


def test_the_members_own_groups_have_to_let_them_out() -> None:
    """By address, by group, by port; one of a user's groups is enough."""
    only_db = rule("sg-db", egress=True)
    for out, admitted in (
        ((), False),
        ((only_db,), False),
        ((rule("sg-a", egress=True),), True),
        ((rule("sg-a", PORT + 1, egress=True),), False),
        ((rule("127.0.0.0/8", egress=True),), True),
        ((rule("10.0.0.0/8", egress=True),), False),
    ):
        found = door(sg("sg-a", rule("sg-web")), sg("sg-web", users=(33,), out=out))
        assert found is not None
        assert found.admits(33) is admitted, out
        found = door(sg("sg-a", *OPEN), sg("sg-web", users=(33,), out=out))
        assert (found is None) is admitted  # else he alone is barred
        assert found is None or (found.admits(34), found.admits(33)) == (True, False)
    both = door(sg("sg-a", *OPEN), sg("sg-web", users=(33,), out=()), sg("sg-more", users=(33,)))
    assert both is None


def test_a_cache_without_groups_is_in_the_default_one() -> None:
    cache = group(1)
    assert all(not d.admits(33) for d in seen(cache))
    assert seen(cache)
    assert seen(cache, default=sg("sg-default", *OPEN)) == ()
    changed = sg("sg-default", rule("sg-default", protocol=ANY), users=(33,))  # as it is stored
    assert all(d.admits(33) for d in seen(cache, changed, default=sg("sg-default", *OPEN)))


def test_an_id_that_is_no_groups_lets_nobody_in_or_is_the_default_one() -> None:
    cache = group(1, security_group_ids=("sg-gone",))
    everybody = sg("sg-default", *OPEN)
    assert all(not d.admits(33) for d in seen(cache, default=everybody))
    assert seen(cache, default=everybody)
    assert seen(cache, default=everybody, lenient=True) == ()


def test_the_bus_of_a_cluster_is_for_its_nodes_alone() -> None:
    """Whoever speaks there is believed."""
    closed = group(3, security_group_ids=("sg-a",))
    closed = replace(closed, decided=replace(closed.decided, mode="enabled"))
    everybody = sg("sg-a", *OPEN)
    for rules in (sg("sg-a", rule("0.0.0.0/0", PORT + 10000), rule("127.0.0.0/8")), everybody):
        bus = {d.address: d for d in seen(closed, rules) if d.port == PORT + 10000}
        assert set(bus) == {n.address for n in closed.decided.nodes}
        assert not any(d.admits(33) or d.networks for d in bus.values())
    assert {d.port for d in seen(closed, everybody)} == {PORT + 10000}
    assert doors([closed], {"sg-a": everybody}, DEFAULT, lenient=False, buses=False) == ()


def test_nothing_is_decided_yet() -> None:
    assert seen(group(1, settled=False)) == ()
