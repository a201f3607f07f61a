"""Users of clients, while everything runs. Which of them nodes may know is decided before any node is told, so that whoever is
wanted no more is taken from every node, and nobody else is: an engine may have users that are none of ours."""

from __future__ import annotations

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.engines.users import names_of
from cachekeep.model import Apply, Decide, Node, Start, Step
from cachekeep.plan.situation import Situation, listed, verb


def know(s: Situation) -> Step | None:
    """Nodes are to be told of users, as soon as it is written down that they may know them."""
    known = s.decided.known_users
    new = names_of(s.cache.wanted.clients) - known
    if not new:
        return None
    return Decide(replace(s.decided, known_users=known | new), f"nodes are to know {listed(sorted(new))} as {_users(new)}")


def forget(s: Situation) -> Step | None:
    """Users that are wanted no more, and that no process knows any more."""
    gone = s.decided.known_users - names_of(s.cache.wanted.clients)
    if not gone or any(isinstance(flight.effect, Start | Apply) for flight in s.view.flights):
        return None  # what is under way brings with it what was wanted when it began
    if not all(_told(s, n) for n in s.decided.everyone):
        return None
    because = f"no node knows {listed(sorted(gone))} any more, who {verb(gone, 'was', 'were')} {_users(gone)}"
    return Decide(replace(s.decided, known_users=s.decided.known_users - gone), because)


def _users(names: frozenset[str]) -> str:
    return "a user" if len(names) == 1 else "users"


def _told(s: Situation, node: Node) -> bool:
    """Its process knows the users that it is to know and none of those that are gone, or there is none."""
    seen = s.seen(node)
    return seen.process in ("absent", "exited", "stuck") or runtime(s.cache, node).is_in(seen.digests, "acl") is True
