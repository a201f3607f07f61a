"""Who may do what on a Valkey or Redis server: three users of ours, each with a secret of its own, and the clients'.

An engine gives a password to whoever listens at the address that it was told, so what engines say to each other opens
nothing but what they say it for (decision 39). All secrets come from the one that is stored: whoever learns a lesser one cannot
tell the others by it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cachekeep.engines import acl
from cachekeep.model import Clients, ClientUser, Credential, NamedUsers, Secret, TokenHolders

ADMIN = "cachekeep-admin"
"""By which the control plane gives orders. No engine knows its password, only the hash to check it by."""
REPLICA = "cachekeep-replica"
"""By which a node follows its primary."""
MOVER = "cachekeep-mover"
"""By which a node moves slots to another."""
RESERVED = "cachekeep-"
"""Users of ours begin so, and no others."""
OUR_USERS = frozenset({ADMIN, REPLICA, MOVER})
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


# [AWS: Supported and restricted commands], and what would let a client undo our orders, load code, halt the server or learn of our
# users though AWS does not name it: decision 6 says which and why.
_WITHHELD = "bgrewriteaof bgsave config debug failover migrate psync replconf replicaof save shutdown slaveof sync"
_WITHHELD_OF = {
    "acl": "deluser dryrun getuser list load save setuser users",
    "cluster": "addslots addslotsrange bumpepoch cancelslotmigrations delslots delslotsrange failover flushslots forget links meet "
    "migrateslots replicate reset saveconfig set-config-epoch setslot syncslots",
    "module": "load loadex unload",
    "script": "debug",
}
WITHHELD = frozenset(_WITHHELD.split()) | {f"{command}|{name}" for command, names in _WITHHELD_OF.items() for name in names.split()}
"""Commands and subcommands that no client may run, whatever its access string says."""
_OPEN_OF = {
    "acl": "cat genpass log whoami",
    "cluster": "count-failure-reports countkeysinslot getkeysinslot info keyslot myid nodes replicas slaves slots",
    "module": "list",
    "script": "exists flush kill load",
}
_CATEGORIES_OF = {
    "acl": "admin dangerous slow",
    "cluster": "admin dangerous slow",
    "module": "admin dangerous slow",
    "script": "scripting slow",
}
"""Redis 6: those that a command with subcommands is in."""
_NOBODY = "default reset off"
"""The ACL line of ``default`` where everybody has to say who he is."""


def names_of(clients: Clients) -> frozenset[str]:
    """The users that clients come as, but for ``default``, which every engine has."""
    return frozenset(user.name for user in clients.users) - {"default"} if isinstance(clients, NamedUsers) else frozenset()


def users_of(clients: Clients, engine: str, numbers: tuple[int, ...]) -> tuple[str, ...]:
    """The ACL lines of whoever may be a client. ``default`` is always among them: engines have it, and let it do everything."""
    if not isinstance(clients, NamedUsers):
        tokens = clients.tokens if isinstance(clients, TokenHolders) and not clients.optional else ()
        return (default_user(engine, numbers, tokens),)
    lines = [_client_user(user, engine, numbers) for user in clients.users]
    return (*lines, *(() if any(user.name == "default" for user in clients.users) else (_NOBODY,)))


def default_user(engine: str, numbers: tuple[int, ...], tokens: Sequence[str] = ()) -> str:
    """The ACL line of ``default``, which begins anew as ours do: what ElastiCache gives a client of a cache without RBAC, and not
    what it withholds. ``tokens``: hashes of those by which clients come; without any they need none, and any is taken."""
    return _line("default", tokens, acl.parse("on ~* &* +@all"), engine, numbers)


def _client_user(user: ClientUser, engine: str, numbers: tuple[int, ...]) -> str:
    """The ACL line of a user of a user group."""
    return _line(user.name, user.passwords, acl.parse(user.access), engine, numbers)


def _line(name: str, passwords: Sequence[str], may: acl.Access, engine: str, numbers: tuple[int, ...]) -> str:
    """What is withheld comes last, and within each selector: a rule before ``+@all`` is undone by it, and a selector gives whatever
    the user itself lacks."""
    root = acl.rules(may.root, engine, numbers, _last(may.root, engine, numbers))
    selectors = [f"({' '.join(acl.rules(s, engine, numbers, _last(s, engine, numbers)))})" for s in may.selectors]
    secrets = [f"#{hashed}" for hashed in passwords] or ["nopass"]
    return " ".join([name, "reset", "on" if may.on else "off", *secrets, *root, *selectors])


def _last(p: acl.Permissions, engine: str, numbers: tuple[int, ...]) -> list[str]:
    """The rules that take away what is withheld.

    Before Redis 7 rules cannot withhold a subcommand, only give it: there, each command of which some are withheld is withheld
    whole, and those of its harmless subcommands are given back that it had by these permissions.
    """
    rules = [f"-{command}" for command in _WITHHELD.split()]
    if engine == "redis" and numbers < (7, 0):
        for command, subcommands in _OPEN_OF.items():
            rules += [f"-{command}", *(f"+{command}|{name}" for name in subcommands.split() if _had(p, command, name))]
        return rules
    parts = [f"{command}|{name}" for command, subcommands in _WITHHELD_OF.items() for name in subcommands.split()]
    return rules + [f"-{name}" for name in parts if acl.knows(engine, numbers, name)]


def _had(p: acl.Permissions, command: str, subcommand: str) -> bool:
    """Whether permissions give a subcommand, in the order of their rules."""
    names = {command, f"{command}|{subcommand}", *(f"@{category}" for category in _CATEGORIES_OF[command].split())}
    last = next((rule for rule in reversed(p.commands) if rule[1:] in names), None)
    return p.everything if last is None else last[0] == "+"
