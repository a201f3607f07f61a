"""Logging in at an engine, in the engines' words (``engines/users.py`` says what each may)."""

from __future__ import annotations

from cachekeep.compute.contract import Target
from cachekeep.engines.users import ADMIN, secret_of


def log_in(target: Target) -> tuple[str, ...]:
    """Log the control plane in."""
    return ("AUTH", ADMIN, target.password.value)


def come_as(user: str, target: Target) -> dict[str, str]:
    """The settings by which a node logs in at others as this user."""
    return {"masteruser": user, "masterauth": secret_of(user, target.password)}
