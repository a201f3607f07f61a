"""Security groups as clients meet them: other users of the machine, and other machines."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.acceptance.installation import AWS, Installation, available, created, eventually

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "security-groups.md"
STRANGER, FRIEND = 65534, 64123
"""Users of this machine: by number, so that nobody has to be made."""
ENDED = {"ConnectionResetError", "BrokenPipeError", "closed"}

_CONVERSE = """
import os, socket, sys
user, *places = sys.argv[1:]
if int(user):
    os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
connections = []
for address, port in zip(places[::2], places[1::2]):
    connections.append(socket.socket())
    connections[-1].settimeout(60)
    try:
        connections[-1].connect((address, int(port)))
    except OSError as error:
        connections[-1] = error
for line in iter(sys.stdin.readline, ""):
    said = set()
    for connection in connections:
        try:
            if isinstance(connection, OSError):
                raise connection
            connection.sendall(line.encode())
            said.add(" ".join(connection.recv(99).decode().split()) or "closed")
        except OSError as error:
            said.add(type(error).__name__)
    print(*sorted(said), sep=", ", flush=True)
"""


@pytest.fixture(autouse=True)
def filters() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("nft") is None:
        pytest.skip("needs nft")


class Someone:
    """A user of this machine, or of another (``netns``), with a connection to each address."""

    def __init__(self, user: int, *addresses: str, port: int = 6379, netns: str = "") -> None:
        within = ["ip", "netns", "exec", netns] if netns else []
        places = [word for address in addresses for word in (address, str(port))]
        self.process = subprocess.Popen(
            [*within, sys.executable, "-S", "-E", "-c", _CONVERSE, str(user), *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def says(self, line: str = "PING") -> str:
        """All that is answered on its connections, in words; the name of an error where there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\r\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def meet() -> Iterator[Callable[..., Someone]]:
    """Brings somebody to an address."""
    there: list[Someone] = []

    def come(*where: Any, **more: Any) -> Someone:
        there.append(Someone(*where, **more))
        return there[-1]

    yield come
    for someone in there:
        someone.leave()


def rule(port: int = 6379, **more: Any) -> list[dict[str, Any]]:
    return [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **more}]


def tables() -> str:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def places(group: dict[str, Any]) -> dict[str, str]:
    """Every address at which a group of one shard serves."""
    (shard,) = group["NodeGroups"]
    nodes = {m["CacheClusterId"]: m["ReadEndpoint"]["Address"] for m in shard["NodeGroupMembers"]}
    return {**nodes, "primary": shard["PrimaryEndpoint"]["Address"], "readers": shard["ReaderEndpoint"]["Address"]}


def test_users_of_this_machine(another: Callable[..., Installation], meet: Callable[..., Someone]) -> None:
    """Nodes, endpoints and the readers' balancer alike; connections that exist, too; and after a failover."""
    one = another().up()
    ec2, client = one.client("ec2"), one.client()
    before = tables()
    group = ec2.create_security_group(GroupName="web-cache", Description="d")["GroupId"]
    where = places(created(client, "demo", SecurityGroupIds=[group], AutomaticFailoverEnabled=True))

    def all_say(user: int) -> str:
        return meet(user, *where.values()).says()

    eventually(lambda: all_say(STRANGER) == "ConnectionRefusedError")
    assert all_say(0) == "+PONG"  # our own processes
    everybody = rule(IpRanges=[{"CidrIp": "127.0.0.0/8"}])
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=everybody)
    eventually(lambda: all_say(STRANGER) == "+PONG")
    connected = meet(STRANGER, *where.values())
    assert connected.says() == "+PONG"
    subscriber, ours = meet(STRANGER, where["primary"]), meet(0, where["primary"])
    assert subscriber.says("SUBSCRIBE news").startswith("*3")  # who sends nothing more that could be refused
    assert ours.says("PUBSUB NUMSUB news").endswith(" :1")
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=everybody)
    eventually(lambda: all_say(STRANGER) == "ConnectionRefusedError")
    eventually(lambda: ours.says("PUBSUB NUMSUB news").endswith(" :0"))
    assert set(connected.says().split(", ")) <= ENDED

    # Members of another group, which is let in.
    web = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule(UserIdGroupPairs=[{"GroupId": web}]))
    said = one.run("allow", "demo", "--uid", str(FRIEND)).stdout
    assert "web" in said
    eventually(lambda: all_say(FRIEND) == "+PONG")
    assert all_say(STRANGER) == "ConnectionRefusedError"
    friend = meet(FRIEND, where["primary"])
    assert friend.says("SET k 1") == "+OK"
    client.test_failover(ReplicationGroupId="demo", NodeGroupId="0001")
    eventually(lambda: meet(FRIEND, where["primary"]).says("SET k 2") == "+OK")
    assert meet(STRANGER, where["primary"]).says() == "ConnectionRefusedError"
    one.run("allow", "demo", "--uid", str(FRIEND), "--revoke")
    eventually(lambda: all_say(FRIEND) == "ConnectionRefusedError")

    # What somebody else takes away comes back; what ends takes its table along.
    (mine,) = set(tables().split("\n")) - set(before.split("\n"))
    name = mine.split()[-1]
    subprocess.run(["nft", "delete", "table", "inet", name], check=True)
    eventually(lambda: all_say(STRANGER) == "ConnectionRefusedError")
    one.kill()
    assert all_say(STRANGER) == "ConnectionRefusedError"  # the kernel goes on without a control plane
    one.close()
    assert name not in tables()


@pytest.fixture
def neighbour() -> Iterator[tuple[str, str]]:
    """Another machine on a network of ours: its network namespace, and the first three octets that both have."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip")
    number = os.getpid() % 200
    name, net = f"cksg{number}", f"10.213.{number}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        for host in range(1, 9):
            ip("address", "add", f"{net}.{host}/24", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "address", "add", f"{net}.100/24", "dev", f"{name}b")
        ip("-n", name, "address", "add", f"{net}.200/24", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        yield name, net
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)
        subprocess.run(["ip", "link", "delete", f"{name}a"], check=False, capture_output=True)


def test_other_machines(neighbour: tuple[str, str], tmp_path: Path, meet: Callable[..., Someone]) -> None:
    """Their addresses are what a rule names; a user of this machine gets in by none of them, whatever address he takes."""
    netns, net = neighbour
    one = Installation(tmp_path)
    one.pool = ",".join(f"{net}.{host}" for host in range(2, 9))
    try:
        one.up()
        ec2, client = one.client("ec2"), one.client()
        group = ec2.create_security_group(GroupName="web-cache", Description="d")["GroupId"]
        where = places(created(client, "demo", NumCacheClusters=1, SecurityGroupIds=[group]))
        eventually(lambda: meet(0, where["primary"], netns=netns).says() == "ConnectionRefusedError")
        theirs = rule(IpRanges=[{"CidrIp": f"{net}.0/25"}])
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=theirs)
        eventually(lambda: meet(0, where["primary"], netns=netns).says() == "+PONG")
        connected = meet(0, where["primary"], netns=netns)
        assert connected.says() == "+PONG"
        assert meet(STRANGER, where["primary"]).says() == "ConnectionRefusedError"
        other = rule(IpRanges=[{"CidrIp": f"{net}.192/26"}])
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=other)
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=theirs)
        eventually(lambda: meet(0, where["primary"], netns=netns).says() == "ConnectionRefusedError")
        assert connected.says() in ENDED
    finally:
        one.close()


def test_the_guide(another: Callable[..., Installation], meet: Callable[..., Someone]) -> None:
    """Its commands, one after the other, as they stand there."""
    one = another().up()
    script = "\n".join(line[4:] for line in GUIDE.read_text().splitlines() if line.startswith("    "))
    assert "cachekeep allow demo --uid www-data" in script
    env = one.aws_environment() | {"CACHEKEEP_DATA_DIR": str(one.data_dir), "AWS_PAGER": ""}
    done = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    where = places(one.client().describe_replication_groups(ReplicationGroupId="demo")["ReplicationGroups"][0])
    www_data = pwd.getpwnam("www-data").pw_uid
    eventually(lambda: meet(www_data, *where.values()).says() == "+PONG")
    eventually(lambda: meet(STRANGER, *where.values()).says() == "ConnectionRefusedError")


def test_the_bus_of_a_cluster(another: Callable[..., Installation], meet: Callable[..., Someone]) -> None:
    """Though the cache is open to everybody: who says MEET there is believed."""
    one = another().up()
    client = one.client()
    shards = {"ClusterMode": "enabled", "NumNodeGroups": 1, "ReplicasPerNodeGroup": 0, "CacheNodeType": "cache.t3.micro"}
    client.create_replication_group(ReplicationGroupId="demo", ReplicationGroupDescription="d", Engine="valkey", **shards)
    address = available(client, "demo")["ConfigurationEndpoint"]["Address"]
    node = one.status("demo")["nodes"][0]["endpoint"].rpartition(":")[0]
    assert meet(STRANGER, address, node).says() == "+PONG"
    eventually(lambda: meet(STRANGER, node, port=16379).says() == "ConnectionRefusedError")
    socket.create_connection((node, 16379), timeout=60).close()
    assert available(client, "demo")["Status"] == "available"


class Bare(Installation):
    """On a machine without nft, which is among the programs of administrators."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PATH": f"{AWS.parent}:/usr/bin:/bin"}


def test_what_nobody_can_keep_is_not_promised(tmp_path: Path) -> None:
    one = Bare(tmp_path)
    try:
        refused = one.popen("--default-ingress", "members")
        assert refused.wait(60) == 1
        assert "this needs nft" in one.narration()
        one.up()
        with pytest.raises(ClientError, match="this needs nft"):
            one.client("ec2").create_security_group(GroupName="web-cache", Description="d")
        assert "this needs nft" in one.run("allow", "demo", "--uid", "1", check=False).stderr
    finally:
        one.close()


def test_the_default_group_as_at_aws_and_two_installations(
    another: Callable[..., Installation], meet: Callable[..., Someone]
) -> None:
    """Nobody is let in but its members; and neither installation touches what the other keeps."""
    both = [another("--default-ingress", "members").up() for _ in range(2)]
    where: list[str] = []
    for one in both:
        client = one.client()
        client.create_cache_cluster(CacheClusterId="mc", Engine="memcached", CacheNodeType="cache.t3.micro", NumCacheNodes=1)
        client.get_waiter("cache_cluster_available").wait(CacheClusterId="mc")
        (cluster,) = client.describe_cache_clusters(CacheClusterId="mc", ShowCacheNodeInfo=True)["CacheClusters"]
        where += [cluster["ConfigurationEndpoint"]["Address"], cluster["CacheNodes"][0]["Endpoint"]["Address"]]
    eventually(lambda: meet(STRANGER, *where, port=11211).says("version") == "ConnectionRefusedError")
    both[0].run("allow", "mc", "--uid", str(FRIEND))
    eventually(lambda: meet(FRIEND, *where[:2], port=11211).says("version").startswith("VERSION"))
    assert str(FRIEND) in both[0].run("allow", "mc").stdout
    assert meet(STRANGER, *where, port=11211).says("version") == "ConnectionRefusedError"
    assert meet(FRIEND, *where[2:], port=11211).says("version") == "ConnectionRefusedError"
    both[0].close()
    with socket.socket() as anybodys:
        anybodys.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        anybodys.bind((where[1], 11211))
        anybodys.listen()
        stranger = meet(STRANGER, where[1], port=11211)
        anybodys.accept()[0].sendall(b"open again")
        assert stranger.says() == "open again"
    assert meet(STRANGER, *where[2:], port=11211).says("version") == "ConnectionRefusedError"
