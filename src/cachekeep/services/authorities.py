"""From one certificate authority to another, as the command line asks for it, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from cachekeep.model import Cache
from cachekeep.security.certs import new_authority
from cachekeep.services.core.caches import every, save, told
from cachekeep.services.core.context import Context, value_error
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call


class AuthorityAsked(msgspec.Struct, forbid_unknown_fields=True):
    """``publish`` makes another, of which clients can learn; ``reissue`` has it issue every certificate; ``retire`` ends the trust
    in those before it."""

    step: Literal["publish", "reissue", "retire"]


async def rotate_authority(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """The next step. Raises ApiError where the one before it is missing."""
    try:
        step = msgspec.convert(call.params, AuthorityAsked).step
    except msgspec.ValidationError as error:
        raise value_error(str(error)) from None
    known, caches = context.authorities, [c async for c in every(tx) if c.wanted.transit != "disabled" and not c.wanted.deleted]
    if step == "publish":
        if known.next_id is None:
            known.add(*new_authority(context.clock.now()), issues=False)
        because = "another certificate authority is there, and issues nothing yet: give clients what `cachekeep ca` prints now"
        return {"because": f"{because}, then `cachekeep rotate-ca reissue`"}
    if step == "reissue":
        if known.next_id is None and len(known.ids) < 2:
            raise value_error("No other certificate authority is published: `cachekeep rotate-ca publish` first.")
        known.promote()
        for cache in caches:
            authorities = tuple(dict.fromkeys((*cache.wanted.authorities, known.ids[-1])))
            await save(
                tx,
                cache,
                replace(cache.wanted, authorities=authorities),
                told(cache, "By hand: certificates are to be issued anew"),
            )
        because = f"the certificates of {len(caches)} caches are issued anew"
        return {"because": f"{because}, and clients that trust the old authority alone are left out"}
    if len(known.ids) < 2 and known.next_id is not None:
        raise value_error("The other certificate authority issues nothing yet: `cachekeep rotate-ca reissue` first.")
    if len(known.ids) < 2:
        raise value_error("There is one certificate authority alone, so none can be retired.")
    if late := [c.name for c in caches if not _reissued(c, known.ids[-1])]:
        raise value_error(
            f"{', '.join(late)} may still show certificates of the old authority; nothing was changed. Try again later."
        )
    for cache in caches:
        await save(tx, cache, replace(cache.wanted, authorities=known.ids[-1:]))
    known.retire()
    return {"because": "the certificate authorities before the last are trusted by nobody any more, and their keys are gone"}


def _reissued(cache: Cache, authority: str) -> bool:
    """Whether all its nodes show what this authority issued, as its keeper has put on record."""
    now = cache.decided.certificate
    return now is not None and now.trusted[0] == authority
