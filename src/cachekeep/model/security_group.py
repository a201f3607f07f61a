"""Security groups: who may connect. Ids and rules are EC2's; their members are caches, and users of the machine."""

from __future__ import annotations

from typing import Final

import msgspec

ANY: Final = "-1"
"""The protocol of a rule that is for all of them."""
EVERYBODY: Final = ("0.0.0.0/0", "::/0")


class SecurityGroupRule(msgspec.Struct, frozen=True, kw_only=True):
    """Lets in (or, ``egress``, out) what comes from a peer: a CIDR block, or the members of a group, by its id."""

    id: str
    egress: bool = False
    protocol: str
    """``tcp``, ``udp``, ``icmp``, ``icmpv6``, ``-1`` for any, or the number of another."""
    from_port: int | None = None
    """None: every port. For ICMP type and code stand in their place; -1: all."""
    to_port: int | None = None
    peer: str
    description: str = ""
    tags: dict[str, str] = {}

    @property
    def of_group(self) -> bool:
        """Whether its peer is a group."""
        return self.peer.startswith("sg-")

    @property
    def subject(self) -> tuple[bool, str, int | None, int | None, str]:
        """What it says. A group has no two rules that say the same [AuthorizeSecurityGroupIngress]."""
        return self.egress, self.protocol, self.from_port, self.to_port, self.peer

    def covers(self, port: int) -> bool:
        """Whether it is about connections to this TCP port."""
        if self.protocol == ANY:
            return True
        return self.protocol == "tcp" and (self.from_port or 0) <= port <= (65535 if self.to_port is None else self.to_port)


class SecurityGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A security group. ``name`` is its id: that is what it is stored by."""

    name: str
    group_name: str
    description: str
    rules: tuple[SecurityGroupRule, ...] = ()
    users: tuple[int, ...] = ()
    """Users of this machine (numbers) that are members: what they connect from is let in where the group is."""
    tags: dict[str, str] = {}
    version: int = 0

    @property
    def lets_everybody_in(self) -> bool:
        """Whether it keeps nobody out, whatever the port."""
        return {*EVERYBODY} <= {r.peer for r in self.rules if r.protocol == ANY and not r.egress}

    def rule(self, id: str) -> SecurityGroupRule | None:
        """Its rule of that id."""
        return next((r for r in self.rules if r.id == id), None)
