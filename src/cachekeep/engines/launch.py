"""How a node's server is started: arguments, files, and who may do what on it.

A Valkey or Redis server starts as a replica of nobody: of a port at its own address where nothing listens. So a fresh or restarted
process takes no writes and feeds no replica until it has been ordered to lead (pitfall: the old primary comes back and overwrites
the new one). ``{dir}`` stands for the process's own directory, ``{listen}`` for the address that it binds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from cachekeep.engines import discovery
from cachekeep.engines.catalogue import Build
from cachekeep.engines.config import item_mb, within
from cachekeep.engines.limits import MEMCACHED_OWN_FILES
from cachekeep.engines.runtime import runtime
from cachekeep.engines.tls import AUTHORITIES, IDENTITY, Papers
from cachekeep.engines.users import secret_of
from cachekeep.model import Cache, Digests, Limits, Node, Runtime, Secret, Shard
from cachekeep.model.traits import Speaks, traits

NOBODY_PORT = 1
"""A replica told to follow its own address at this port follows nobody."""
ENGINES_OWN = frozenset({"nodes.conf", discovery.BOARD})
"""Files that a running engine writes itself or has mapped: given at the start, never replaced beneath it."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver needs to start a node's process, but for where and as which account."""

    argv: tuple[str, ...]
    files: dict[str, tuple[str, bool]]
    """Name → (text, whether it is secret)."""
    env: dict[str, str] = {}
    probe: Speaks
    limits: Limits
    tls: bool = False
    """The probe has to come by TLS."""
    settings: dict[str, str]
    """Those that a running server can be told anew."""
    digests: Digests
    """Of all parts that it starts with."""


def launch(
    build: Build,
    cache: Cache,
    node: Node,
    password: Secret,
    papers: Papers | None = None,
    *,
    run_as: str | None = None,
    open_files: int | None = None,
) -> Launch:
    """The launch of ``node`` by ``build``.

    ``password``: of the credential that is in force (``Cache.credentials``). ``papers``: of its certificate, where it has one.
    ``run_as``: the account to which Memcached changes, which must be given where it is started by root.
    ``open_files``: the most that a process is allowed here; an engine that is to have more clients than that is given fewer.
    """
    wanted = runtime(cache, node)
    told = within(wanted.settings, open_files)
    if traits(node.engine).speaks == "memcached":
        argv, files = _memcached_argv(build, node, wanted.boot, run_as, open_files), _board(cache)
    else:
        argv = (build.program, "{dir}/server.conf")
        files = {"server.conf": (server_conf(build, cache, node, wanted, told, password), True)}
        if cache.in_cluster_mode(node):
            files["nodes.conf"] = (nodes_conf(cache, node), False)
    if papers is not None:
        files |= {IDENTITY: (papers.identity, True), AUTHORITIES: (papers.authorities, False)}
    return Launch(
        argv=argv,
        files=files,
        probe=traits(node.engine).speaks,
        tls=cache.encrypted,
        limits=wanted.limits,
        settings=told,
        digests=wanted.digests,
    )


# --- Valkey and Redis


def server_conf(build: Build, cache: Cache, node: Node, wanted: Runtime, settings: Mapping[str, str], password: Secret) -> str:
    """The server's configuration file. It holds what a replica says to its primary, and has to stay secret. ``settings``: those of
    ``wanted`` that a running server can change, as this machine has room for them."""
    clustered, as_whom = cache.in_cluster_mode(node), wanted.login
    lines: list[tuple[str, ...]] = [
        ("bind", "{listen}"),
        ("bind-source-addr", "{listen}"),
        *((("port", str(node.port)),) if wanted.tls is None else wanted.tls.settings),
        ("protected-mode", "no"),  # never on other addresses than those given, and ACLs decide
        ("dir", "{dir}"),
        ("daemonize", "no"),
        ("logfile", ""),
        ("always-show-logo", "no"),
        ("set-proc-title", "yes"),
        ("save", ""),
        ("appendonly", "no"),
        ("rdbcompression", "yes"),
        # What is left of a replication must never be loaded: a process that is started anew is empty, or it would serve stale data.
        ("rdb-del-sync-files", "yes"),
        ("dbfilename", data_file(node)),
        *(("user", *line.split()) for line in wanted.acl),
        *((("masteruser", as_whom.user), ("masterauth", secret_of(as_whom.user, password))) if as_whom else ()),
        ("replica-announce-ip", node.address),
        ("replica-announce-port", str(node.port)),
        ("replica-read-only", "yes"),
        ("replica-serve-stale-data", "yes"),
        # By way of a file, a replica is fed from the moment at which its primary calls it online. Without one, it is called online
        # too, but is fed only after its next acknowledgement, up to a second later: a failover to it lost every write of that
        # second.
        ("repl-diskless-sync", "no"),
        # Straight into memory when there is nothing to lose; else by way of a file, so that old data are not held beside new ones.
        ("repl-diskless-load", "on-empty-db"),
    ]
    if build.numbers >= (6, 2):
        # A client's RESTORE is checked to its last byte. Replication is not: what it brings comes from a process of ours.
        lines.append(("sanitize-dump-payload", "clients"))
        # Where memory runs out all the same, the kernel is to end a fork, whose replica tries again, and not the
        # server with the data; of servers, a replica.
        lines.append(("oom-score-adj", "relative"))
    if build.numbers >= (7, 0):
        lines += [("enable-debug-command", "no"), ("enable-module-command", "no"), ("enable-protected-configs", "no")]
    if clustered:
        lines += [
            ("cluster-config-file", "nodes.conf"),
            ("cluster-announce-ip", node.address),
            ("cluster-replica-validity-factor", "0"),
            ("cluster-migration-barrier", "1"),
            ("cluster-allow-replica-migration", "no"),
        ]
    else:
        lines.append(("replicaof", node.address, str(NOBODY_PORT)))
    lines += [(name, value) for name, value in sorted({**wanted.boot, **settings}.items())]
    return "".join(
        f"{' '.join((name, *(_quoted(value, literal=name == 'user') for value in values)))}\n"
        for name, *values in map(_split_limits, lines)
    )


def data_file(node: Node) -> str:
    """What a process loads at its start, if that is there, and writes a replica's data to: another for each incarnation."""
    return f"replication-{node.incarnation}.rdb"


def _split_limits(line: tuple[str, ...]) -> tuple[str, ...]:
    """``CONFIG SET`` takes all output buffer limits as one value, the file as words."""
    return (line[0], *line[1].split()) if line[0] == "client-output-buffer-limit" else line


def _quoted(value: str, *, literal: bool) -> str:
    """``literal``: users of the API have written it, and what looks like ``{dir}`` there stands for itself."""
    if value and all(c.isalnum() or c in "-_./:{}~&*+@|#=%" for c in value) and not (literal and "{" in value):
        return value
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return quoted.replace("{", "\\x7b") if literal else quoted


# --- cluster mode


def cluster_node_id(cache: Cache, node: Node) -> str:
    """The 40 hex digits by which a node is known in its cluster, the same for as long as cache and node live.

    Another node of the same name, later, is another: for a minute, engines refuse a node that they were told to forget.
    """
    born = node.created_at.isoformat() if node.created_at else ""
    return hashlib.sha1(f"{cache.uid}/{node.name}/{born}".encode(), usedforsecurity=False).hexdigest()


def nodes_conf(cache: Cache, node: Node) -> str:
    """The cluster as it has been decided, as the file that ``node`` reads when it starts: no CLUSTER MEET, no waiting for gossip,
    and no addresses of yesterday. The engine writes the file from then on.

    A node that comes back into a running cluster is told nothing of who else owns what: others tell it within a moment, and know
    better. Shard ids are left to the engine (pre-seeded ones make some Valkey versions drop roles).
    """
    if node in cache.decided.successors:
        return _outside_conf(cache, node)
    shards = {shard.id: shard for shard in cache.decided.shards}
    first = cache.decided.available_at is None
    lines = []
    for n in cache.decided.nodes:
        shard = shards[n.shard]
        if n.leaving and n.name not in (node.name, shard.primary):  # who still leads is somebody to follow
            continue
        primary = next((p for p in cache.decided.nodes if p.name == shard.primary), None)
        leads = primary is None or n.name == primary.name
        flags = ("myself," if n.name == node.name else "") + ("master" if leads else "slave")
        follows = "-" if leads or primary is None else cluster_node_id(cache, primary)
        owned = shard.owned if leads and (first or n.name == node.name) else ()
        slots = [str(a) if a == b else f"{a}-{b}" for a, b in owned]
        where = f"{n.address}:{n.port}@{n.port + 10000}"
        if n.shard == node.shard and shard.primary in (None, node.name) and node.engine == "valkey":
            where += f",,shard-id={_shard_id(cache, shard)}"
        lines.append(
            " ".join(
                [cluster_node_id(cache, n), where, flags, follows, "0", "0", str(shard.epoch if leads else 0), "connected", *slots]
            )
        )
    epoch = max((shard.epoch for shard in shards.values()), default=0)
    return "\n".join([*lines, f"vars currentEpoch {epoch} lastVoteEpoch {epoch}", ""])


def _shard_id(cache: Cache, shard: Shard) -> str:
    """By which a primary of Valkey counts itself to its own shard: without one in its file, it leaves itself and its slots out of
    ``CLUSTER SHARDS`` until it has been a replica once. Its replicas stand in its file with the same one (8.0.1 refuses it
    otherwise); everybody else, they too, learns it from its messages."""
    return hashlib.sha1(f"{cache.uid}/shard/{shard.id}".encode(), usedforsecurity=False).hexdigest()


def _outside_conf(cache: Cache, node: Node) -> str:
    """A cluster whose only primary is a node without cluster mode: nobody answers at its bus, but to be fed one needs only its
    port. ``REPLICAOF`` is refused in cluster mode."""
    shard = cache.decided.shards[0]
    primary = next(n for n in cache.decided.nodes if n.name == shard.primary)
    lines = []
    for n in (primary, *cache.decided.successors):
        flags = ("myself," if n.name == node.name else "") + ("master" if n is primary else "slave")
        follows = "-" if n is primary else cluster_node_id(cache, primary)
        where = f"{n.address}:{n.port}@{n.port + 10000}"
        if node.engine == "valkey":
            where += f",,shard-id={_shard_id(cache, shard)}"
        tail = ["0", "0", "1", "connected", "0-16383"] if n is primary else ["0", "0", "0", "connected"]
        lines.append(" ".join([cluster_node_id(cache, n), where, flags, follows, *tail]))
    return "\n".join([*lines, "vars currentEpoch 1 lastVoteEpoch 1", ""])


# --- Memcached


def _board(cache: Cache) -> dict[str, tuple[str, bool]]:
    """What a node tells of its cluster from its first moment on, where its build can."""
    listed = [n for n in cache.decided.nodes if n.name in cache.decided.discovery_nodes]
    return {discovery.BOARD: (discovery.first_board(discovery.payload(cache.decided.discovery_version, listed)), False)}


def _memcached_argv(build: Build, node: Node, v: Mapping[str, str], run_as: str | None, open_files: int | None) -> tuple[str, ...]:
    """Arguments of memcached(1) for ElastiCache's parameters [AWS: Memcached specific parameters]."""
    on = {name for name, value in v.items() if value == "1"}
    item_bytes, chunk_bytes = _item_sizes(v)
    connections = int(v["max_simultaneous_connections"])
    if open_files is not None:
        connections = min(connections, max(open_files - MEMCACHED_OWN_FILES, 16))
    argv = [build.program, "-l", "{listen}", "-p", str(node.port), "-U", "0", "-m", str(item_mb(v)), "-c", str(connections)]
    argv += ["-t", v["num_threads"], "-b", v["backlog_queue_limit"], "-R", v["requests_per_event"], "-B", v["binding_protocol"]]
    argv += ["-n", v["chunk_size"], "-f", v["chunk_size_growth_factor"], "-I", str(item_bytes)]
    switches = {
        "cas_disabled": "-C",
        "error_on_memory_exhausted": "-M",
        "disable_flush_all": "-F",
        "maximize_core_file_limit": "-r",
    }
    argv += [flag for name, flag in switches.items() if name in on]
    argv += ["-W"] if v.get("watch") == "disabled" else []
    argv += ["-X"] if v.get("lru_crawler metadump") == "disabled" else []
    argv += ["-u", run_as] if run_as else []
    return (*argv, "-o", ",".join(_memcached_options(v, on, chunk_bytes)))


def _item_sizes(v: Mapping[str, str]) -> tuple[int, int]:
    """(largest item, largest slab chunk), bytes. Memcached starts only if the second divides the first,
    so the first is rounded up."""
    item, chunk = int(v["max_item_size"]), int(v["slab_chunk_max"])
    chunk = min(item, chunk)
    return -(-item // chunk) * chunk, chunk


def _memcached_options(v: Mapping[str, str], on: set[str], chunk_bytes: int) -> list[str]:
    options = ["no_modern"] if "no_modern" in on else []
    options += [
        name if name in on else f"no_{name}" for name in ("lru_crawler", "lru_maintainer", "slab_reassign", "maxconns_fast")
    ]
    options += [f"slab_automove={v['slab_automove']}", f"hashpower={v['hashpower_init']}", f"hash_algorithm={v['hash_algorithm']}"]
    options += [f"idle_timeout={v['idle_timeout']}", f"slab_chunk_max={chunk_bytes}"]  # its help says kB and means bytes
    # Not the sizes of log buffers: they are Memcached's own defaults, and 1.6.18 takes worker_logbuf_size for a slab size.
    return [*options, "track_sizes"] if v.get("track_sizes") == "enabled" else options
