"""The certificate of a cache: all its nodes have the same one, which names all its addresses, and another before it ends."""

from __future__ import annotations

import datetime as dt
from typing import Final

from msgspec.structs import replace

from cachekeep.engines.runtime import runtime
from cachekeep.model import Certificate, Decide, Node, Start, Step, Wait, subjects
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.plan.situation import Situation, names, verb

LIFETIME: Final = dt.timedelta(days=90)
RENEWED_BEFORE: Final = dt.timedelta(days=30)
"""The end: time enough to see to it that it can be done."""


def issue(s: Situation) -> Step | None:
    """Decide a certificate where there is none, or where the one that there is does not do any more. A process that starts has it
    from its first moment; those that run are told of it as of settings."""
    wanted, now = s.cache.wanted, s.decided.certificate
    if wanted.transit == "disabled" or not s.decided.nodes:
        return None
    called = tuple(sorted(names_of(s)))
    if now is None:
        because = f"{s.cache.name} gets a certificate for its {len(called)} addresses and names"
    elif now.names != called:
        because = "its addresses or names are others than those of its certificate, so it gets another"
    elif now.expires_at - s.now <= RENEWED_BEFORE:
        because = f"its certificate ends on {now.expires_at:%Y-%m-%d}, so it gets another"
    else:
        return None
    return _decided(s, because, called)


def _decided(
    s: Situation, because: str, called: tuple[str, ...], *, authority: str = "", trusted: tuple[str, ...] = (), told: str = ""
) -> Decide:
    """By the same authority, and trusting the same ones, unless others are given."""
    wanted, now = s.cache.wanted, s.decided.certificate
    next_one = Certificate(
        serial=now.serial + 1 if now is not None else 1,
        authority=authority or (now.authority if now is not None else wanted.authorities[-1]),
        trusted=trusted or (now.trusted if now is not None else wanted.authorities),
        names=called,
        issued_at=s.now,
        expires_at=s.now + LIFETIME,
    )
    events = (s.tell(told),) if told else ()
    return Decide(replace(s.decided, certificate=next_one, transit=wanted.transit), because, events)


def rotate(s: Situation) -> Step | None:
    """Go from one authority to another: all nodes trust both, then show what the new one issued, which is put on record; and then,
    when that is asked for, they trust it alone. Each only when every process there is has been told of the one before, so nodes
    know each other all the way."""
    wanted, now = s.cache.wanted.authorities, s.decided.certificate
    if now is None or (now.trusted[0] == now.authority == wanted[-1] and set(now.trusted) == set(wanted)):
        return None
    both = tuple(dict.fromkeys((*now.trusted, *wanted)))
    if both != now.trusted:
        return _decided(s, "another certificate authority is trusted beside the one that there is", now.names, trusted=both)
    for flight in s.view.flights:
        if isinstance(flight.effect, Start):  # it brings with it what was in force when it began
            return Wait(flight.left_seconds, "flight", flight.because, about=subjects(flight.effect))
    untold = [n for n in s.decided.everyone if not _told(s, n)]
    if untold:
        because = f"{names(untold)} {verb(untold, 'has', 'have')} not been told of the last certificate yet, so both are trusted"
        return Wait(s.policy.poll_seconds * 10, "answer", because, about=tuple(n.name for n in untold))
    if now.authority != wanted[-1]:
        return _decided(s, "every node trusts the new certificate authority, so it issues", now.names, authority=wanted[-1])
    because = "every node shows what the new certificate authority issued"
    if now.trusted[0] != now.authority:
        trusted = tuple(dict.fromkeys((now.authority, *now.trusted)))
        return _decided(s, because, now.names, trusted=trusted, told="Certificates are issued by another authority now")
    return _decided(s, f"{because}, and the one before is retired", now.names, trusted=wanted)


def _told(s: Situation, node: Node) -> bool:
    """Its process runs with the certificate that is decided, or there is none: one that starts begins with it."""
    seen = s.seen(node)
    return seen.process in ("absent", "exited", "stuck") or bool(runtime(s.cache, node).is_in(seen.digests, "tls"))


def names_of(s: Situation) -> set[str]:
    """Every address at which clients or other nodes come to it, and the names by which people call what is there."""
    return addresses_used(s.decided) | {s.cache.name} | {n.member for n in s.decided.everyone}
