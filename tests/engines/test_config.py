"""From parameters to settings, tried on the real servers: they accept every setting that they are given."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
from pathlib import Path

import pytest
import valkey
from msgspec.structs import replace
from tests.engines.servers import PASSWORD, REDIS_LIKE, Orders, build_of, cache_of, carry, node_of, servers

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import ApplyParts
from cachekeep.compute.link import EngineLink
from cachekeep.compute.local.ledger import place
from cachekeep.engines.catalogue import Build, family_of
from cachekeep.engines.config import settings, within
from cachekeep.engines.launch import launch
from cachekeep.engines.parameters import defaults, parameters
from cachekeep.engines.runtime import runtime
from cachekeep.engines.users import default_user
from cachekeep.model import ClientUser, NamedUsers, Shard


def build(engine: str = "valkey", version: str = "8.0.1") -> Build:
    return Build(engine=engine, version=version, server=f"/usr/bin/{engine}-server")  # type: ignore[arg-type]


def of(engine: str = "valkey", version: str = "8.0.1", node_type: str = "cache.t3.micro", **wanted: object) -> tuple:  # type: ignore[type-arg]
    node = node_of(build(engine, version), "demo-001", address="127.0.0.9", node_type=node_type)
    return cache_of(node, **wanted), node


@pytest.mark.parametrize(
    ("node_type", "parameters", "maxmemory"),
    [
        ("cache.t3.micro", {}, "402653184"),
        ("cache.r5.large", {}, "10527885772"),
        ("cache.t3.micro", {"reserved-memory-percent": "0"}, "536870912"),
        ("cache.t3.micro", {"reserved-memory-percent": "100"}, "1"),
        ("cache.t3.micro", {"reserved-memory": "36870912"}, "500000000"),
    ],
)
def test_maxmemory_is_what_elasticache_computes(node_type: str, parameters: dict[str, str], maxmemory: str) -> None:
    assert settings(*of(node_type=node_type, parameters=parameters)).live["maxmemory"] == maxmemory


def test_split_names_become_one_setting() -> None:
    live = settings(*of(parameters={"client-output-buffer-limit-pubsub-hard-limit": "7"})).live
    assert live["client-output-buffer-limit"] == "normal 0 0 0 replica 53687091 53687091 60 pubsub 7 8388608 60"
    assert not any(name.startswith("client-output-buffer-limit-") for name in live)


@pytest.mark.parametrize(("engine", "version"), [("redis", "6.2.0"), ("redis", "7.0.15"), ("valkey", "8.0.1"), ("valkey", "9.1.2")])
def test_every_parameter_arrives_or_has_a_reason(engine: str, version: str) -> None:
    cache, node = of(engine, version)
    got = settings(cache, node)
    folded = {"reserved-memory", "reserved-memory-percent", "cluster-enabled", "cluster-preferred-endpoint-type"}
    for name in parameters(family_of(engine, node.version)):
        arrived = name in got.live or name in got.boot or name in got.left_out
        assert arrived or name in folded or name.startswith("client-output-buffer-limit-"), name
    assert "has no such setting" not in " ".join(got.left_out.values())


def test_a_live_change_needs_no_reboot_and_a_boot_change_does() -> None:
    cache, node = of()
    live, node = of(parameters={"maxmemory-policy": "noeviction"})
    boot, node = of(parameters={"databases": "3"})
    runs_with = runtime(cache, node).digests
    for changed, part in ((live, "settings"), (boot, "boot")):
        digests = runtime(changed, node).digests
        assert {p for p in digests if digests[p] != runs_with[p]} == {part}


@pytest.mark.parametrize(
    ("parameters", "needed", "lag"),
    [
        ({}, "2", "2"),
        ({"min-replicas-to-write": "3", "min-replicas-max-lag": "1"}, "3", "1"),
        ({"min-replicas-to-write": "1", "min-replicas-max-lag": "0"}, "2", "2"),
    ],
)
def test_a_primary_that_may_be_starved_depends_on_its_replicas(parameters: dict[str, str], needed: str, lag: str) -> None:
    cache, node = of(parameters=parameters)
    before = runtime(cache, node).digests["settings"]
    shard = Shard(id=node.shard, primary=node.name, min_replicas=2)
    armed = replace(cache, decided=replace(cache.decided, shards=(shard,)))
    live = settings(armed, node).live
    assert (live["min-replicas-to-write"], live["min-replicas-max-lag"]) == (needed, lag)
    assert (runtime(armed, node).digests["settings"] == before) == (settings(cache, node).live == live)
    replica = replace(armed, decided=replace(armed.decided, shards=(replace(shard, primary="another"),)))
    assert runtime(replica, node).digests["settings"] == before, "a replica does not"


@pytest.mark.parametrize("name", ["{dir}", "{listen}"])
def test_what_a_user_may_is_not_taken_for_what_a_driver_puts_in(name: str) -> None:
    access = "on ~{dir}:* &{listen}* +@all"
    clients = NamedUsers(group="g", users=(ClientUser(name=name, access=access, passwords=("0" * 64,)),))
    cache, node = of(clients=clients)
    text = place(launch(build(), cache, node, PASSWORD).files["server.conf"][0], Path("/var/lib/node"), "127.0.0.9")
    (line,) = [line for line in text.splitlines() if line.startswith("user ") and "0" * 64 in line]
    words = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), line).replace('"', "").split()
    assert words[1] == name
    assert {"~{dir}:*", "&{listen}*"} <= set(words)


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE[:2])
def test_real_servers_read_odd_names_and_patterns_as_they_are(engine: str, major: int, tmp_path: Path) -> None:
    name, access = '{dir}"\\', 'on ~{dir}:* ~{listen}"\\x* resetchannels &{b} +@all'
    clients = NamedUsers(group="g", users=(ClientUser(name=name, access=access, passwords=("0" * 64,)),))
    with servers(build_of(engine, major), tmp_path, 1, clients=clients) as (server,):
        with valkey.Valkey(server.node.address, 6379, username="cachekeep-admin", password=PASSWORD.value) as c:
            found = c.execute_command("ACL", "GETUSER", name)
        told = str(found)
        assert all(pattern in told for pattern in ("~{dir}:*", "&{b}", "~{listen}")), told


def test_the_password_is_only_in_a_secret_file() -> None:
    cache, node = of()
    spec = launch(build(), cache, node, PASSWORD)
    assert PASSWORD.value not in " ".join(spec.argv) + str(spec.env)
    assert all(secret for text, secret in spec.files.values() if PASSWORD.value in text)
    text = spec.files["server.conf"][0]
    (user,) = [line for line in text.splitlines() if line.startswith("user cachekeep-admin")]
    assert PASSWORD.value not in user


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
def test_real_servers_run_with_every_setting_and_take_the_live_ones_again(engine: str, major: int, tmp_path: Path) -> None:
    wanted = {"maxmemory-policy": "allkeys-lfu", "databases": "5", "notify-keyspace-events": "KEA", "reserved-memory-percent": "50"}
    with servers(build_of(engine, major), tmp_path, 1, parameters=wanted) as (server,):
        expected = settings(server.cache, server.node)
        with valkey.Valkey(
            server.node.address, 6379, username="cachekeep-admin", password=PASSWORD.value, decode_responses=True
        ) as c:
            real = c.config_get("*")
            for name, value in {**expected.live, **expected.boot}.items():
                if name not in ("client-output-buffer-limit", "notify-keyspace-events", "maxclients"):
                    assert real[name] == value, name
            assert real["client-output-buffer-limit"].replace("slave", "replica").split() != []
            assert sorted(real["notify-keyspace-events"]) == sorted("AKE")

        async def apply() -> None:
            link = EngineLink(Orders(), SystemClock())
            await carry(
                link,
                ApplyParts(node=server.target.name, settings=within(expected.live, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
                server.target,
            )
            await link.aclose()

        asyncio.run(apply())


WITHHELD = [
    "CONFIG GET bind",
    "DEBUG JMAP",
    "REPLICAOF NO ONE",
    "SLAVEOF NO ONE",
    "SHUTDOWN NOSAVE",
    "BGSAVE",
    "SAVE",
    "BGREWRITEAOF",
    "MIGRATE 127.0.0.1 1 k 0 1",
    "SYNC",
    "PSYNC ? -1",
    "ACL SETUSER x on",
    "ACL DELUSER x",
    "ACL LOAD",
    "ACL SAVE",
    "ACL LIST",
    "ACL USERS",
    "ACL GETUSER default",
    "ACL DRYRUN default GET k",
    "CLUSTER RESET",
    "CLUSTER MEET 127.0.0.1 1",
    "CLUSTER FAILOVER",
    "FAILOVER",
    "MODULE LOAD /tmp/x.so",
    "MODULE LOADEX /tmp/x.so",
    "MODULE UNLOAD x",
    "SCRIPT DEBUG SYNC",
    "SCRIPT DEBUG YES",
    "REPLCONF ACK 1",
]


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
def test_clients_get_what_elasticache_gives_and_not_what_it_withholds(engine: str, major: int, tmp_path: Path) -> None:
    with servers(build_of(engine, major), tmp_path, 1) as (server,), valkey.Valkey(server.node.address, 6379) as client:
        for command in WITHHELD:
            with pytest.raises(valkey.exceptions.ResponseError, match=r"permission|not allowed"):
                client.execute_command(*command.split())
        assert client.execute_command("ACL", "WHOAMI") == b"default"
        assert client.info("server")
        assert client.client_list()
        assert client.slowlog_get() is not None
        assert client.execute_command("MODULE", "LIST") is not None
        assert client.script_exists("0" * 40) == [False]
        for command in WITHHELD:
            with pytest.raises(valkey.exceptions.ResponseError, match=r"permission|not allowed|can't run this"):
                client.eval("return redis.call(unpack(ARGV))", 0, *command.split())


OPEN_THOUGH_DANGEROUS = {
    "acl": "log",  # tells, changes nothing; of users nothing is told: hashes of passwords, and ours, would be among it
    "client": "kill list no-evict pause unblock unpause",  # AWS gives them; a pause is told from a hang
    "cluster": "count-failure-reports flushslot getslotmigrations replicas slaves",  # tells; FLUSHSLOT is FLUSHALL for a slot
    "commandlog": "get len reset",
    "flushall": "",  # the client's own data
    "flushdb": "",
    "info": "",
    "keys": "",
    "lastsave": "",
    "latency": "doctor graph histogram history latest reset",
    "module": "list",
    "monitor": "",
    "pfdebug": "",
    "pfselftest": "",
    "restore": "",
    "restore-asking": "",
    "role": "",
    "slowlog": "get len reset",
    "sort": "",
    "sort_ro": "",
    "swapdb": "",
}
"""Of the commands that an engine itself calls dangerous or administrative, those that AWS does not restrict and that cannot undo an
order of ours. One that a new engine brings is withheld or written down here."""


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
def test_no_dangerous_command_is_open_unseen(engine: str, major: int, tmp_path: Path) -> None:
    with (
        servers(build_of(engine, major), tmp_path, 1) as (server,),
        valkey.Valkey(server.node.address, 6379, username="cachekeep-admin", password=PASSWORD.value, decode_responses=True) as c,
    ):
        dangerous = {name for kind in ("admin", "dangerous") for name in c.execute_command("ACL", "CAT", kind)}
        expected = {f"{name}|{sub}" if sub else name for name, subs in OPEN_THOUGH_DANGEROUS.items() for sub in subs.split(" ")}
        open_here = {name for name in dangerous if _may(c, name)}
        assert open_here <= expected
        assert expected & dangerous <= open_here, "AWS gives these"


def _may(admin: valkey.Valkey, name: str) -> bool:
    """Whether an anonymous client may run a command, by the word of the server (ACL DRYRUN)."""
    arity = next(iter(admin.execute_command("COMMAND", "INFO", name).values()))["arity"]
    words = name.split("|")
    words += ["1"] * (abs(arity) - len(words))
    try:
        return bool(admin.execute_command("ACL", "DRYRUN", "default", *words) == "OK")
    except valkey.exceptions.ResponseError as error:
        return "permission" not in str(error)


def test_before_redis_7_subcommands_are_given_one_by_one() -> None:
    rules = default_user("redis", (6, 2, 6)).split()
    for command, subs in {"script": "exists flush kill load", "module": "list"}.items():
        at = rules.index(f"-{command}")
        assert rules[at + 1 : at + 1 + len(subs.split())] == [f"+{command}|{sub}" for sub in subs.split()]
    assert not any("|" in rule and rule.startswith("-") for rule in rules), "it knows no such rule, and would not start"
    assert not {"+script|debug", "+module|load", "+module|unload"} & set(rules)


MEMCACHED_CHANGES: list[tuple[str, str, str, str]] = [
    ("max_item_size", "1000000", "item_size_max", "1048576"),
    ("max_item_size", "2048", "item_size_max", "2048"),
    ("max_item_size", "4194304", "item_size_max", "4194304"),
    ("cas_disabled", "1", "cas_enabled", "no"),
    ("error_on_memory_exhausted", "1", "evictions", "off"),
    ("disable_flush_all", "1", "flush_enabled", "no"),
    ("hash_algorithm", "murmur3", "hash_algorithm", "murmur3"),
    ("idle_timeout", "77", "idle_timeout", "77"),
    ("chunk_size", "96", "chunk_size", "96"),
    ("chunk_size_growth_factor", "1.5", "growth_factor", "1.50"),
    ("lru_crawler", "1", "lru_crawler", "yes"),
    ("lru_maintainer", "1", "lru_maintainer_thread", "yes"),
    ("slab_reassign", "1", "slab_reassign", "yes"),
    ("maxconns_fast", "1", "maxconns_fast", "yes"),
    ("binding_protocol", "ascii", "binding_protocol", "ascii"),
    ("track_sizes", "enabled", "track_sizes", "yes"),
    ("memcached_connections_overhead", "112", "maxbytes", str(400 * 2**20)),
]


@pytest.mark.parametrize(("name", "value", "stat", "shown"), MEMCACHED_CHANGES)
def test_memcached_runs_with_what_the_parameter_says(name: str, value: str, stat: str, shown: str, tmp_path: Path) -> None:
    assert defaults("memcached1.6")[name] != value
    real = memcached_settings(tmp_path, {name: value})
    assert real[stat] == shown


def test_memcached_without_watch_and_dumps_refuses_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    wanted = {"watch": "disabled", "lru_crawler metadump": "disabled", "lru_crawler": "1"}
    with servers(build_of("memcached", 1), tmp_path, 1, parameters=wanted) as (server,):
        for command in (b"watch\r\n", b"lru_crawler metadump all\r\n"):
            with socket.create_connection((server.node.address, server.node.port)) as line:
                line.sendall(command)
                assert b"not allowed" in line.recv(4096)


def memcached_settings(tmp_path: Path, wanted: dict[str, str]) -> dict[str, str]:
    tmp_path.chmod(0o755)
    with (
        servers(build_of("memcached", 1), tmp_path, 1, parameters=wanted) as (server,),
        socket.create_connection((server.node.address, server.node.port)) as line,
    ):
        line.sendall(b"stats settings\r\n")
        text = b""
        while not text.endswith(b"END\r\n"):
            text += line.recv(65536)
    return dict(line.split(" ", 2)[1:] for line in text.decode().splitlines() if line.startswith("STAT "))


def _crc64(data: bytes) -> int:
    """The checksum of a dump: CRC-64 of Jones, reflected (crc64.c of the engines)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


def _spoilt(dump: bytes) -> bytes:
    """A dump whose last element says that it is longer than it is. Its head and its checksum are right."""
    body = bytearray(dump[:-8])
    at = body.rindex(b"\x82v1")
    body[at] = 0xBF
    return bytes(body) + _crc64(bytes(body)).to_bytes(8, "little")


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
@pytest.mark.parametrize("kind", ["hash", "zset", "list"])
def test_a_dump_of_a_client_is_checked_to_its_last_byte(engine: str, major: int, kind: str, tmp_path: Path) -> None:
    """Unchecked, it is taken, and reading it ends the process."""
    with servers(build_of(engine, major), tmp_path, 1) as (server,), valkey.Valkey(server.node.address, 6379) as client:
        admin = valkey.Valkey(server.node.address, 6379, username="cachekeep-admin", password=PASSWORD.value)
        admin.replicaof("NO", "ONE")
        {
            "hash": lambda: client.hset("k", "f1", "v1"),
            "zset": lambda: client.zadd("k", {"v1": 1.5}),
            "list": lambda: client.rpush("k", "v0", "v1"),
        }[kind]()
        dump = client.dump("k")
        assert dump is not None
        client.restore("good", 0, dump)
        with pytest.raises(valkey.exceptions.ResponseError, match="Bad data format"):
            client.restore("bad", 0, _spoilt(dump))
        assert client.exists("good") == 1
        admin.close()
