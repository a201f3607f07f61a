"""Who is asking, as sts and iam tell it."""

from __future__ import annotations

from cachekeep.wire.gateway import Call


def is_root(call: Call) -> bool:
    return call.principal.arn.endswith(":root")


def user_id(call: Call) -> str:
    """The root's id is the account's."""
    return call.principal.account if is_root(call) else call.principal.access_key
