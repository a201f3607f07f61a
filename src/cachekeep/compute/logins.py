"""Logging in at an engine, in the engines' words (``engines/users.py`` says what each may)."""

from __future__ import annotations

from cachekeep.compute.contract import Target
from cachekeep.engines.users import ADMIN, our_users, secret_of


def log_in(target: Target) -> tuple[str, ...]:
    """Log the control plane in."""
    return ("AUTH", ADMIN, target.password.value)


def know_users(target: Target) -> tuple[tuple[str, ...], ...]:
    """Have a node know the users of ours: a release that had nobody but the admin may have started it."""
    numbers = tuple(int(part) for part in target.version.split("."))
    lines = our_users(target.engine, numbers, target.password)
    return tuple(("ACL", "SETUSER", *line.split()) for line in lines if not line.startswith(f"{ADMIN} "))


def come_as(user: str, target: Target) -> dict[str, str]:
    """The settings by which a node logs in at others as this user."""
    return {"masteruser": user, "masterauth": secret_of(user, target.password)}
