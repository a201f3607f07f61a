"""Reading what engines say about themselves. Pure: bytes in, nouns out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from cachekeep.engines.launch import NOBODY_PORT
from cachekeep.model import ClusterSeen, Excuse, NodeView, Plight, ReplicaSeen, Stream

_REPLICA = re.compile(r"slave\d+")
_OTHER_DATABASE = re.compile(r"db[1-9]\d*")


def info(text: bytes | str) -> dict[str, str]:
    """The fields of an ``INFO`` reply, of whatever sections."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    pairs = (line.partition(":") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def node_view(fields: Mapping[str, str], bound: str | None, settings: Mapping[str, str]) -> NodeView:
    """What ``INFO replication``, ``persistence``, ``keyspace``, ``memory`` and ``clients`` together say about a node, and
    ``CONFIG GET``."""
    replica = fields.get("role") == "slave"
    following = replica and _number(fields, "master_port") != NOBODY_PORT
    history = _has_history(fields)
    held = _stream(fields) if history else None
    link_up = fields.get("master_link_status") == "up" if following else None
    loading = fields.get("loading") == "1" or fields.get("async_loading") == "1"
    used = _number(fields, "used_memory")
    return NodeView(
        answer=Excuse("loading") if loading else "complete",
        role="replica" if replica else "primary",
        follows=fields.get("master_host") if following else None,
        link_up=link_up,
        offset=held.offset if held else 0,  # whatever one that holds nothing says: 1 or -1
        stream=held,
        has_history=history,
        replicas=() if replica else tuple(_replicas(fields)),
        other_databases=tuple(sorted(int(name[2:]) for name in _named(fields, "db", _OTHER_DATABASE))),
        bound=None if bound is None else frozenset(address.lstrip("-") for address in bound.split()),
        used_bytes=None if used is None else used - (_number(fields, "mem_not_counted_for_evict") or 0),
        clients=_number(fields, "connected_clients"),
        places=_places(fields, settings),
        settings={name: value.replace("slave ", "replica ") for name, value in settings.items()},
    )


def _places(fields: Mapping[str, str], settings: Mapping[str, str]) -> int | None:
    """An engine counts its replicas and the cluster's links too (networking.c, acceptCommonHandler)."""
    most, clients = _number(settings, "maxclients"), _number(fields, "connected_clients")
    if most is None or clients is None:
        return None
    return most - clients - (_number(fields, "connected_slaves") or 0) - (_number(fields, "cluster_connections") or 0)


_PLIGHTS: dict[str, Plight] = {
    "LOADING": "loading",
    "BUSY": "busy",
    "NOAUTH": "stranger",
    "WRONGPASS": "stranger",
    "NOPERM": "stranger",
    "DENIED": "stranger",
    "ERR max number of clients": "crowded",
    "ERR AUTH": "stranger",
    "ERR Client sent AUTH": "stranger",
    "ERR invalid password": "stranger",
    "ERROR Too many open connections": "crowded",
    "CLIENT_ERROR unauthenticated": "stranger",
    "not RESP": "stranger",
}
"""How error replies begin (Redis 6 to Valkey 9: networking.c, acl.c, server.c; Memcached 1.6: memcached.c)."""


def excuse(words: str) -> Excuse:
    """What an error reply says of the engine that gave it, whatever was asked."""
    return Excuse(next((plight for begin, plight in _PLIGHTS.items() if _begins(words, begin)), "failing"), words)


def _begins(words: str, begin: str) -> bool:
    """``BUSY …`` is another error than ``BUSYKEY …``."""
    return words.startswith(begin) and not words[len(begin) : len(begin) + 1].isalpha()


def told_in(cluster_slots: object) -> frozenset[str]:
    """Ids of all nodes that ``CLUSTER SLOTS`` tells of [https://valkey.io/commands/cluster-slots/]: first slot, last slot, then
    primary and replicas, each as address, port, id and more."""
    ranges = cluster_slots if isinstance(cluster_slots, list) else []
    return frozenset(node[2].decode() for found in ranges for node in found[2:])


def cluster_seen(cluster_info: bytes, cluster_nodes: bytes, cluster_slots: object = None) -> ClusterSeen:
    """What ``CLUSTER INFO``, ``CLUSTER NODES`` and ``CLUSTER SLOTS`` say about the node that was asked. Raises ValueError where it
    does not name itself.

    [https://valkey.io/commands/cluster-nodes/]: id, address, flags, primary, ping, pong, epoch, link, slots; of itself alone, slots
    that are half open are told: ``[slot->-id]`` and ``[slot-<-id]``.
    """
    knows: list[str] = []
    greets: dict[str, str] = {}
    replicas: set[str] = set()
    mine: list[str] = []
    lines = {line.partition(" ")[0]: line for line in cluster_nodes.decode().splitlines()}
    for line in lines.values():
        id, where, flags, rest = line.split(" ", 3)
        if "handshake" in flags:
            greets[id] = where.rpartition("@")[0].rpartition(":")[0]
        else:
            knows.append(id)
        if "slave" in flags and "fail" not in flags and "handshake" not in flags:
            replicas.add(id)
        if "myself" in flags:
            mine = [id, *rest.split(" ")]
    if not mine:
        raise ValueError("CLUSTER NODES does not name the node that was asked")
    id, primary, _, _, epoch, _, *owned = mine
    told = told_in(cluster_slots)
    migrating: dict[int, str] = {}
    importing: dict[int, str] = {}
    for word in owned:
        if word.startswith("["):
            slot, way, other = word[1:-1].split("-", 2)
            (migrating if way == ">" else importing)[int(slot)] = other
    return ClusterSeen(
        id=id,
        ok=info(cluster_info).get("cluster_state") == "ok",
        epoch=int(epoch),
        slots=_slots(owned),
        inherits=_slots(lines.get(primary, "").split(" ")[8:]),
        migrating=migrating,
        importing=importing,
        knows=frozenset(knows),
        greets=greets,
        untold=frozenset(replicas - told),
    )


def _slots(words: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """``0-5460 7`` → ranges; half open slots are something else."""
    edges = (word.partition("-") for word in words if word and not word.startswith("["))
    return tuple((int(first), int(last or first)) for first, _, last in edges)


def _has_history(fields: Mapping[str, str]) -> bool:
    """Whether the process holds a replication history, that it wrote or received in full.

    A process that started as a replica of nobody has no backlog, no keys and has never changed its replication id. Each engine
    makes a backlog when a full synchronisation is complete (and drops it when one begins), when its first replica arrives, and when
    a primary is demoted; being promoted sets ``second_repl_offset``. Keys can come only from these or from a file at the start.
    """
    return (
        fields.get("repl_backlog_active") == "1"
        or (_number(fields, "second_repl_offset") or -1) > -1
        or (_number(fields, "master_repl_offset") or 0) > 0
        or any(re.fullmatch(r"db\d+", name) for name in fields)
    )


def _stream(fields: Mapping[str, str]) -> Stream:
    """Of a node with a history. From ``second_repl_offset`` on, inclusive, the two histories differ; -1: there is no second."""
    offset = _number(fields, "slave_repl_offset" if fields.get("role") == "slave" else "master_repl_offset") or 0
    differs_from = _number(fields, "second_repl_offset") or -1
    first, second = fields.get("master_replid", ""), fields.get("master_replid2", "")
    return Stream(first, max(offset, 0), *((second, differs_from - 1) if differs_from > 0 else ()))


_HELD = re.compile(
    rb"^(role|slave_repl_offset|master_replid2?|master_repl_offset|second_repl_offset|repl_backlog_active):([^\r\n]*)", re.MULTILINE
)


def stream(replication: bytes) -> Stream | None:
    """What a node holds, by its ``INFO replication``; None if nothing. It is asked very often, so nothing else is read."""
    fields = {name.decode(): value.decode() for name, value in _HELD.findall(replication)}
    return _stream(fields) if _has_history(fields) else None


def _replicas(fields: Mapping[str, str]) -> list[ReplicaSeen]:
    seen = []
    for name in _named(fields, "slave", _REPLICA):
        parts = dict(part.split("=", 1) for part in fields[name].split(",") if "=" in part)
        seen.append(
            ReplicaSeen(
                address=parts.get("ip", ""),
                port=int(parts.get("port", "0")),
                online=parts.get("state") == "online",
                offset=int(parts.get("offset", "0")),
                lag_seconds=int(parts.get("lag", "-1")),
            )
        )
    return seen


def _named(fields: Mapping[str, str], prefix: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """Fields with such a name. Few have the prefix, and only those are worth a closer look: this is asked in every failover."""
    return (name for name in fields if name.startswith(prefix) and pattern.fullmatch(name))


def _number(fields: Mapping[str, str], name: str) -> int | None:
    try:
        return int(fields[name])
    except (KeyError, ValueError):
        return None


def reaches(role: object) -> bool | None:
    """What a replica's ``ROLE`` says of its primary's host: True when it takes the connection, False while it does not, None for a
    replica that is not trying at the moment, and for a primary."""
    if not isinstance(role, list) or len(role) < 4 or role[0] != b"slave":
        return None
    return {b"connected": True, b"sync": True, b"handshake": True, b"connecting": False}.get(role[3])


def refused(stats: bytes) -> int:
    """Of ``INFO stats``: how many commands of its primary's stream a replica has answered
    with an error, which it should never do."""
    return _number(info(stats), "unexpected_error_replies") or 0


_PULSE = re.compile(
    rb"^(?:role|master_host|master_port|master_link_status):[^\r]*|^slave\d+:ip=[^,]*,port=\d+,state=\w+", re.MULTILINE
)


def pulse(replication: bytes) -> tuple[bytes, ...]:
    """Of an ``INFO replication`` reply, only what a change of state changes: role, who is followed, links, states of replicas."""
    return tuple(_PULSE.findall(replication, 0, replication.find(b"\nmaster_replid:")))  # it is asked very often; no state follows


_ACQUAINTANCES = re.compile(rb"^cluster_known_nodes:\d+", re.MULTILINE)


def acquaintances(cluster_info: bytes) -> tuple[bytes, ...]:
    """Of a ``CLUSTER INFO`` reply, how many nodes are known: it changes as soon as one comes that has yet to shake hands."""
    return tuple(_ACQUAINTANCES.findall(cluster_info))


_AMOUNTS = re.compile(rb"^(used_memory|mem_not_counted_for_evict|connected_clients):(\d+)", re.MULTILINE)


def amounts(sections: bytes) -> dict[str, str]:
    """Of ``INFO memory`` and ``clients``, the few fields that a look needs: it is asked often, and they are long."""
    return {name.decode(): value.decode() for name, value in _AMOUNTS.findall(sections)}


_MAXBYTES = re.compile(rb"^STAT maxbytes (\d+)", re.MULTILINE)


def memcached_bounds(stats_settings: bytes) -> dict[str, str]:
    """Of Memcached's ``stats settings``, its item memory as ``cache_memlimit`` takes it: in MiB."""
    found = _MAXBYTES.search(stats_settings)
    return {"cache_memlimit": str(int(found[1]) >> 20)} if found else {}


def watchers(client_list: object, users: Collection[str]) -> tuple[str, ...]:
    """Ids of the clients that watch all commands (MONITOR), of those that came as one of these users; of ``CLIENT LIST``."""
    lines = client_list.splitlines() if isinstance(client_list, bytes) else []  # of ten thousand clients, perhaps
    watching = (line.decode(errors="replace") for line in lines if b"O" in line.partition(b" flags=")[2].partition(b" ")[0])
    clients = [dict(word.partition("=")[::2] for word in line.split(" ")) for line in watching]
    return tuple(c["id"] for c in clients if c.get("user") in users)
