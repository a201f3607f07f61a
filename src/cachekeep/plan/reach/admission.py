"""Who may connect to what: security groups as verdicts on the places where caches serve. Pure.

A packet on the loopback interface has whatever source address its sender chose (any user may bind any address of the machine), so
users of this machine are told apart by what the kernel knows of a socket, its owner. A block of addresses lets them in only if it
holds all of 127.0.0.0/8 (or is ::/0): then it does not matter which they choose. Other machines are told apart by their addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from cachekeep.model import Cache
from cachekeep.model.security_group import EVERYBODY, SecurityGroup, SecurityGroupRule
from cachekeep.plan.nodes.members import addresses_used

BUS_OFFSET = 10000
"""Nodes of a cluster speak to each other at their port and this."""
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """Who may connect to a place, besides our own processes. A place that is open to all has no door."""

    address: str
    port: int
    everybody: bool = False
    """Every user of this machine, but for those that are ``barred``."""
    users: frozenset[int] = frozenset()
    barred: frozenset[int] = frozenset()
    """Their own groups do not let them out to it."""
    networks: tuple[str, ...] = ()
    """Blocks of addresses, apart from each other, from which other machines may."""

    def admits(self, user: int) -> bool:
        """Whether a user of this machine may connect."""
        return user in self.users or (self.everybody and user not in self.barred)

    def admits_from(self, address: str) -> bool:
        """Whether another machine may connect."""
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(each) for each in self.networks)


def doors(
    caches: Iterable[Cache],
    groups: Mapping[str, SecurityGroup],
    default: SecurityGroup,
    *,
    lenient: bool,
    buses: bool = True,
) -> tuple[Door, ...]:
    """The doors of all caches, in the order of their places. ``default`` is for a cache that names no group, and with ``lenient``
    for every id that is no group's; else such an id lets nobody in.

    The bus of a cluster knows no passwords: its nodes believe whoever speaks there. It has a door in any case, unless ``buses`` are
    left out: then only with the doors of a cache that has others.
    """
    of_user: dict[int, list[SecurityGroup]] = {}
    for group in (*groups.values(), *(() if default.name in groups else (default,))):
        for user in group.users:
            of_user.setdefault(user, []).append(group)
    default = groups.get(default.name, default)
    found: dict[tuple[str, int], Door] = {}
    for cache in caches:
        ids = cache.wanted.security_group_ids or (default.name,)
        known = {id: groups.get(id, default if lenient or id == default.name else None) for id in ids}
        mine = {group.name: group for group in known.values() if group is not None}
        decided = cache.decided
        ports = {cache.wanted.port, *(n.port for n in decided.everyone), *(f.port for f in decided.fronts)}
        closed = [
            door
            for address in addresses_used(decided)
            for port in ports
            if (door := _door(address, port, mine, of_user)) is not None
        ]
        if closed or buses:
            closed += [Door(address=n.address, port=n.port + BUS_OFFSET) for n in decided.everyone if cache.in_cluster_mode(n)]
        found |= {(door.address, door.port): door for door in closed}
    return tuple(found[place] for place in sorted(found))


def _door(
    address: str, port: int, mine: Mapping[str, SecurityGroup], of_user: Mapping[int, Iterable[SecurityGroup]]
) -> Door | None:
    """That of one place; None where everybody may."""
    rules = [rule for group in mine.values() for rule in group.rules if not rule.egress and rule.covers(port)]
    sources = {rule.peer for rule in rules if rule.of_group}
    at = ipaddress.ip_address(address)
    networks = _blocks(rules, at.version)
    all_here = _LOOPBACK if at.version == 4 else ipaddress.ip_network(EVERYBODY[1])
    everybody = any(all_here.subnet_of(network) for network in networks)  # type: ignore[arg-type]
    users, barred = set[int](), set[int]()
    for user, groups in of_user.items():
        out = any(_lets_out(rule, at, port, mine) for group in groups for rule in group.rules)
        if everybody and not out:
            barred.add(user)
        elif out and not everybody and any(group.name in sources for group in groups):
            users.add(user)
    if everybody and not barred and any(str(network) in EVERYBODY for network in networks):
        return None
    return Door(
        address=address,
        port=port,
        everybody=everybody,
        users=frozenset(users),
        barred=frozenset(barred),
        networks=tuple(str(network) for network in networks),
    )


def _blocks(rules: Iterable[SecurityGroupRule], version: int) -> list[Network]:
    blocks = [ipaddress.ip_network(rule.peer) for rule in rules if not rule.of_group]
    return list(ipaddress.collapse_addresses([b for b in blocks if b.version == version]))  # type: ignore[type-var]


def _lets_out(
    rule: SecurityGroupRule, to: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, mine: Mapping[str, SecurityGroup]
) -> bool:
    if not rule.egress or not rule.covers(port):
        return False
    return rule.peer in mine if rule.of_group else to in ipaddress.ip_network(rule.peer)
