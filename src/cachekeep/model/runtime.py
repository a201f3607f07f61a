"""What a node's process is to run with, part by part.

A running process is brought to it by one effect (``Apply``). Of each part but the limits, of which the kernel tells the amounts, a
digest is kept of what the process runs with: a part that differs is applied, and nothing else. A part more is a field more here, a
word more in ``Part`` and a row more in what a link applies (``ApplyParts``).
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Literal

import msgspec

from cachekeep.model.certificate import Tls
from cachekeep.model.limits import Limits

Part = Literal["acl", "login", "settings", "tls"]
"""What a running engine can be told anew, in the order in which it is told."""
Digests = dict[Part | Literal["boot"], str]


class Login(msgspec.Struct, frozen=True):
    """As which user a node comes to its primary."""

    user: str
    password_hash: str
    """SHA-256, hexadecimal."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Empty parts are those that an engine does not have: Memcached has neither users nor a login."""

    settings: dict[str, str] = {}
    """Those that a running server can change."""
    boot: dict[str, str] = {}
    """Those that only a restart changes."""
    acl: tuple[str, ...] = ()
    """Who may do what, a line for each user. Only hashes of passwords are in it."""
    gone: tuple[str, ...] = ()
    """Users that it may know of before, and is to know no more. Any others that it knows are none of ours."""
    login: Login | None = None
    tls: Tls | None = None
    limits: Limits = Limits()

    @functools.cached_property
    def digests(self) -> Digests:
        """Of each part that is there: equal digests, nothing to apply."""
        parts: dict[Part | Literal["boot"], object] = {
            "acl": (*self.acl, *self.gone),
            "login": self.login and (self.login.user, self.login.password_hash),
            "settings": self.settings,
            "boot": self.boot,
            "tls": self.tls and msgspec.to_builtins(self.tls),
        }
        return {part: _digest(value) for part, value in parts.items() if value}

    def is_in(self, seen: Digests | None, part: Part | Literal["boot"]) -> bool | None:
        """Whether this part is what a process with these digests runs with; None: nobody knows."""
        return None if seen is None else seen.get(part) == self.digests.get(part)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
