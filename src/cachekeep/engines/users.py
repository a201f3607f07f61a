"""Who may do what on a Valkey or Redis server: three users of ours, each with a secret of its own, and the clients'.

An engine gives a password to whoever listens at the address that it was told, so what engines say to each other opens
nothing but what they say it for (decision 39). All secrets come from the one that is stored: whoever learns a lesser one cannot
tell the others by it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cachekeep.model import Credential, Secret

ADMIN = "cachekeep-admin"
"""By which the control plane gives orders. No engine knows its password, only the hash to check it by."""
REPLICA = "cachekeep-replica"
"""By which a node follows its primary."""
MOVER = "cachekeep-mover"
"""By which a node moves slots to another."""
_SLOTS_MOVE_WHOLE_SINCE = (9, 0)
"""Valkey's own moves of slots log in as a replica does, with ``masteruser``, and then write."""


def secret_of(user: str, admin: Secret) -> str:
    """The password of a user of ours, from the admin's, which is random (HMAC-SHA-256, RFC 2104)."""
    return admin.value if user == ADMIN else hmac.digest(admin.value.encode(), user.encode(), "sha256").hex()


def credential_of(serial: int, admin: Secret, sealed: str) -> Credential:
    """A password of the admin's as it is kept, with what engines check our users' by."""
    hashes = tuple((user, hash_of(secret_of(user, admin))) for user in (ADMIN, REPLICA, MOVER))
    return Credential(serial=serial, sealed=sealed, hashes=hashes)


def our_users(engine: str, numbers: tuple[int, ...], accepted: Sequence[Credential]) -> tuple[str, ...]:
    """The ACL lines of our users, who come by any of the accepted credentials: only hashes of passwords are in them. Each begins
    anew, so it may be given to a running engine.

    What a mover restores is checked as a client's is (``sanitize-dump-payload``)."""
    moves = "~* +asking +ping +restore +restore-asking +select"
    if engine == "valkey" and numbers >= _SLOTS_MOVE_WHOLE_SINCE:
        # And it may follow: a source whose move was cut short may be a replica the next moment.
        moves = "~* &* +@all -@admin +cluster|syncslots +psync +replconf"
    rules = {ADMIN: "~* &* +@all", REPLICA: "+ping +psync +replconf", MOVER: moves}
    passwords = {user: " ".join(f"#{c.hash_of(user)}" for c in accepted) for user in rules}
    return tuple(f"{user} reset on {passwords[user]} {may}" for user, may in rules.items())


def hash_of(secret: str) -> str:
    """By which an engine checks a password."""
    return hashlib.sha256(secret.encode()).hexdigest()


# [AWS: Supported and restricted commands], and what would let a client undo our orders, load code or halt the server though AWS
# does not name it: decision 6 says which and why.
_WITHHELD = "bgrewriteaof bgsave config debug failover migrate psync replconf replicaof save shutdown slaveof sync"
_WITHHELD_OF = {
    "acl": "deluser load save setuser",
    "cluster": "addslots addslotsrange bumpepoch cancelslotmigrations delslots delslotsrange failover flushslots forget links meet "
    "migrateslots replicate reset saveconfig set-config-epoch setslot syncslots",
    "module": "load loadex unload",
    "script": "debug",
}
_OPEN_OF = {
    "acl": "cat genpass getuser list log users whoami",
    "cluster": "count-failure-reports countkeysinslot getkeysinslot info keyslot myid nodes replicas slaves slots",
    "module": "list",
    "script": "exists flush kill load",
}
_SINCE: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {  # command → (Valkey, Redis), where not everywhere
    "cluster|migrateslots": ((9, 0), None),
    "cluster|cancelslotmigrations": ((9, 0), None),
    "cluster|syncslots": ((9, 0), None),
}


def default_user(engine: str, numbers: tuple[int, ...]) -> str:
    """The ACL line of ``default``, which begins anew as ours do: what ElastiCache gives a client of a cache without AUTH or RBAC,
    and not what it withholds.

    Before Redis 7 rules cannot withhold a subcommand, only give it: there, each command of which some are withheld is withheld
    whole, and its harmless subcommands are given back.
    """
    rules = [f"-{command}" for command in _WITHHELD.split()]
    if engine == "redis" and numbers < (7, 0):
        for command, subcommands in _OPEN_OF.items():
            rules += [f"-{command}", *(f"+{command}|{name}" for name in subcommands.split())]
    else:
        parts = [f"{command}|{name}" for command, subcommands in _WITHHELD_OF.items() for name in subcommands.split()]
        rules += [f"-{name}" for name in parts if _knows(engine, numbers, name)]
    return f"default reset on nopass ~* &* +@all {' '.join(rules)}"


def _knows(engine: str, numbers: tuple[int, ...], command: str) -> bool:
    if command not in _SINCE:
        return True
    valkey, redis = _SINCE[command]
    since = valkey if engine == "valkey" else redis
    return since is not None and numbers >= since
