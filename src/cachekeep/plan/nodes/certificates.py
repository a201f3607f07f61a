"""The certificate of a cache: all its nodes have the same one, which names all its addresses, and another before it ends."""

from __future__ import annotations

import datetime as dt
from typing import Final

from msgspec.structs import replace

from cachekeep.model import Certificate, Decide, Step
from cachekeep.plan.nodes.members import addresses_used
from cachekeep.plan.situation import Situation

LIFETIME: Final = dt.timedelta(days=90)
RENEWED_BEFORE: Final = dt.timedelta(days=30)
"""The end: time enough to see to it that it can be done."""


def issue(s: Situation) -> Step | None:
    """Decide a certificate where there is none, or where the one that there is does not do any more. A process that starts has it
    from its first moment; those that run are told of it as of settings."""
    wanted, now = s.cache.wanted, s.decided.certificate
    if wanted.transit == "disabled" or not s.decided.nodes:
        return None
    names = tuple(sorted(names_of(s)))
    if now is None:
        because = f"{s.cache.name} gets a certificate for its {len(names)} addresses and names"
    elif now.names != names:
        because = "its addresses or names are others than those of its certificate, so it gets another"
    elif now.expires_at - s.now <= RENEWED_BEFORE:
        because = f"its certificate ends on {now.expires_at:%Y-%m-%d}, so it gets another"
    else:
        return None
    next_one = Certificate(
        serial=now.serial + 1 if now is not None else 1,
        authority=now.authority if now is not None else wanted.authorities[-1],
        trusted=now.trusted if now is not None else wanted.authorities,
        names=names,
        issued_at=s.now,
        expires_at=s.now + LIFETIME,
    )
    return Decide(replace(s.decided, certificate=next_one, transit=wanted.transit), because)


def names_of(s: Situation) -> set[str]:
    """Every address at which clients or other nodes come to it, and the names by which people call what is there."""
    return addresses_used(s.decided) | {s.cache.name} | {n.member for n in s.decided.everyone}
