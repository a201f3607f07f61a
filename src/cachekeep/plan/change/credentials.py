"""The password of our own users is changed while everything runs: a new one is accepted beside the old one by every node, then all
come by it, then the old one is refused. At no moment is anybody left out: whoever leads next, or starts anew, takes what the others
come by, and it does not matter where a control plane dies."""

from __future__ import annotations

from typing import get_args

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.model import Decide, MoveSlots, Node, Part, Start, Step, Wait, subjects
from cachekeep.plan.situation import Situation, names, verb


def rotate(s: Situation) -> Step | None:
    """The next step of a change of passwords that was asked for, once every process there is has been told of the last one."""
    if not s.cache.credentials:
        return None
    now, other, newest = s.decided.credential, s.decided.other_credential, s.cache.wanted.credentials[-1].serial
    if other is None and newest <= now:
        return None
    for flight in s.view.flights:
        if isinstance(flight.effect, Start | MoveSlots):  # it brings with it what was in force when it began
            return Wait(flight.left_seconds, "flight", flight.because, about=subjects(flight.effect))
    if other is None:
        because = "a new password is accepted beside the old one at every node"
        return Decide(replace(s.decided, other_credential=newest), because)
    untold = [n for n in s.decided.everyone if not _told(s, n)]
    if untold:
        because = f"{names(untold)} {verb(untold, 'has', 'have')} not been told of the new password yet, so both are accepted"
        return Wait(s.policy.poll_seconds * 10, "answer", because, about=tuple(n.name for n in untold))
    if other > now:
        because = "every node accepts the new password, so all come by it"
        return Decide(replace(s.decided, credential=other, other_credential=now), because)
    because = "every node comes by the new password, so the old one is refused"
    return Decide(replace(s.decided, other_credential=None), because, (s.tell("Rotated the passwords of Cachekeep's own users"),))


def _told(s: Situation, node: Node) -> bool:
    """Its process runs with what is decided, as far as passwords go, or there is none: one that starts begins with it."""
    seen, wanted = s.seen(node), runtime(s.cache, node)
    passwords: tuple[Part, ...] = tuple(part for part in get_args(Part) if part != "settings")
    return seen.process in ("absent", "exited", "stuck") or all(wanted.is_in(seen.digests, part) for part in passwords)
