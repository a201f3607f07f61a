"""A whole installation in memory, without the wire: filled once, and copied for each trial."""

from __future__ import annotations

import atexit
import copy
import datetime as dt
import shutil
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from tests.metrics.archives import MemoryArchive
from tests.services.rig import ACCOUNT, CATALOGUE, SETTINGS, Keeper, SetClock

from cachekeep.audit.record import Called, Identity, line
from cachekeep.audit.trail import Trail
from cachekeep.model import BackingKey, IssuedKey, KmsAlias, KmsKey, Secret
from cachekeep.security.sealing import Sealing
from cachekeep.services import SERVICES, Services
from cachekeep.store import MemoryStore
from cachekeep.wire.caller import Principal
from cachekeep.wire.gateway import Call

TRUST = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "sts:*", "Principal": {"AWS": "*"}}}'
KEY_POLICY = TRUST.replace("sts:*", "kms:*").replace('"Effect"', '"Resource": "*", "Effect"')
KMS_KEYS = tuple("-".join(digit * count for count in (8, 4, 4, 4, 12)) for digit in "123")
KEYS = ("AKIABOBSFIRSTKEYAAAA", "AKIABOBSSECONDKEYAAA")
"""Of the user bob."""


def record() -> Trail:
    """Some calls on record: of two users, in a file that stays as it is."""
    directory = Path(tempfile.mkdtemp(prefix="cachekeep-tests-"))
    atexit.register(shutil.rmtree, directory)
    arn = f"arn:aws:elasticache:us-east-1:{ACCOUNT}:cluster"
    with open(directory / "00000001.jsonl", "wb") as file:
        for number, (user, operation) in enumerate([("bob", "CreateCacheCluster"), ("eve", "DeleteCacheCluster")] * 3):
            called = Called(
                identity=Identity(type="IAMUser", account=ACCOUNT, name=user),
                access_key="key",
                source="elasticache.amazonaws.com",
                operation=operation,
                region="us-east-1",
                address="127.0.0.1",
                user_agent="",
                request_id=f"request-{number}",
                event_id=f"event-{number}",
                at=RECORDED_AT + dt.timedelta(minutes=number),
                seconds=0.0,
                reads=False,
                resources={f"{arn}:{user}": "AWS::ElastiCache::CacheCluster"},
            )
            file.write(line(called))
    return Trail("tests", directory, 1 << 20)


RECORDED_AT = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=1)
TRAIL = record()


class World:
    """Two users, a group, a single node, a Memcached cluster, a parameter group and a subnet group, all settled."""

    def __init__(self, clock: SetClock | None = None) -> None:
        self.clock = clock or SetClock()
        self.store = MemoryStore(self.clock)
        self.keeper = Keeper(self.store, self.clock)
        self.archive = MemoryArchive()
        self.open()

    def open(self) -> None:
        self.services = Services(
            SERVICES,
            self.store,
            CATALOGUE,
            replace(SETTINGS, any_subnet=True, trails=(TRAIL,)),
            self.clock,
            Sealing(bytes(32)),
            archive=self.archive,
        )

    def copy(self) -> World:
        """The same world once more: filling one takes longer than what is tried in it."""
        new = copy.copy(self)
        new.clock, new.store, new.keeper, new.archive = copy.deepcopy((self.clock, self.store, self.keeper, self.archive))
        new.open()
        return new

    async def ask(self, operation: str, params: dict[str, Any], service: str = "elasticache") -> Any:
        """As root, or as bob what root may not ask."""
        principal = Principal("key", f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT)
        if operation in ("AssumeRole", "GetSessionToken"):
            principal = Principal(KEYS[0], "", ACCOUNT)
        return await self.services.dispatch(
            Call(service, operation, params, principal, "us-east-1", "r", dt.datetime.now(dt.UTC), None)
        )

    async def fill(self) -> None:
        await self.ask(
            "CreateCacheParameterGroup",
            {"CacheParameterGroupName": "mine", "CacheParameterGroupFamily": "valkey8", "Description": "d"},
        )
        await self.ask(
            "CreateCacheSubnetGroup",
            {"CacheSubnetGroupName": "sub", "CacheSubnetGroupDescription": "d", "SubnetIds": ["subnet-12345678"]},
        )
        node = {"CacheNodeType": "cache.t3.micro", "EngineVersion": "8.0", "Engine": "valkey"}
        mine = {"CacheParameterGroupName": "mine", "CacheSubnetGroupName": "sub"}
        await self.ask(
            "CreateReplicationGroup",
            {"ReplicationGroupId": "demo", "ReplicationGroupDescription": "d", "NumCacheClusters": 3} | node | mine,
        )
        await self.ask("CreateCacheCluster", {"CacheClusterId": "one"} | node)
        await self.ask(
            "CreateCacheCluster",
            {"CacheClusterId": "mc", "CacheNodeType": "cache.t3.micro", "Engine": "memcached", "NumCacheNodes": 3},
        )
        await self.ask("CreateGroup", {"GroupName": "idle"}, "iam")
        for name in ("bob", "eve", "idle"):
            await self.ask("CreateUser", {"UserName": name}, "iam")
        allow = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "elasticache:*", "Resource": "*"}}'
        for name in ("one", "two"):
            await self.ask("PutUserPolicy", {"UserName": "bob", "PolicyName": name, "PolicyDocument": allow}, "iam")
        for name in ("AmazonElastiCacheFullAccess", "AmazonElastiCacheReadOnlyAccess"):
            await self.ask("AttachUserPolicy", {"UserName": "bob", "PolicyArn": f"arn:aws:iam::aws:policy/{name}"}, "iam")
        boundary = {"UserName": "bob", "PermissionsBoundary": "arn:aws:iam::aws:policy/AdministratorAccess"}
        await self.ask("PutUserPermissionsBoundary", boundary, "iam")
        for name in ("ops", "dev"):
            await self.ask("CreateGroup", {"GroupName": name}, "iam")
            condition = '"Condition": {"StringEquals": {"sts:ExternalId": "42"}}, "Effect"' if name == "dev" else '"Effect"'
            trust = TRUST.replace('"Effect"', condition)
            await self.ask("CreateRole", {"RoleName": f"{name}-role", "AssumeRolePolicyDocument": trust}, "iam")
            await self.ask("CreatePolicy", {"PolicyName": f"{name}-policy", "PolicyDocument": allow}, "iam")
        for name in ("bob", "eve"):
            await self.ask("AddUserToGroup", {"GroupName": "ops", "UserName": name}, "iam")
        await self.ask("AddUserToGroup", {"GroupName": "dev", "UserName": "bob"}, "iam")
        tags = [{"Key": key, "Value": "1"} for key in ("a", "b")]
        ops_policy = f"arn:aws:iam::{ACCOUNT}:policy/ops-policy"
        for kind, about in (
            ("User", {"UserName": "bob"}),
            ("Role", {"RoleName": "ops-role"}),
            ("Policy", {"PolicyArn": ops_policy}),
        ):
            await self.ask(f"Tag{kind}", {**about, "Tags": tags}, "iam")
        for kind, name in (("Group", "ops"), ("Role", "ops-role")):
            about = {f"{kind}Name": name}
            for policy in ("one", "two"):
                await self.ask(f"Put{kind}Policy", {**about, "PolicyName": policy, "PolicyDocument": allow}, "iam")
            for arn in ("arn:aws:iam::aws:policy/AmazonElastiCacheFullAccess", ops_policy):
                await self.ask(f"Attach{kind}Policy", {**about, "PolicyArn": arn}, "iam")
        await self.ask("PutRolePermissionsBoundary", {"RoleName": "ops-role", "PermissionsBoundary": ops_policy}, "iam")
        await self.ask("CreatePolicyVersion", {"PolicyArn": ops_policy, "PolicyDocument": allow}, "iam")
        async with self.store.transaction() as tx:
            for number in (1, 2, 3):
                name, at = KMS_KEYS[number - 1], dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
                sealed = Sealing(bytes(32)).seal(Secret("00" * 32), owner=name, purpose="key 1")
                backing = (BackingKey(number=1, sealed=sealed, created_at=at),)
                await tx.put(KmsKey(name=name, created_at=at, policy=KEY_POLICY, backing=backing, tags={"a": "1", "b": "2"}))
                await tx.put(KmsAlias(name=f"alias/{number}", key=KMS_KEYS[0], created_at=at, updated_at=at))
        await self.ask("DisableKey", {"KeyId": KMS_KEYS[1]}, "kms")
        await self.ask("ScheduleKeyDeletion", {"KeyId": KMS_KEYS[2]}, "kms")
        for access_key in KEYS:
            async with self.store.transaction() as tx:
                await tx.put(IssuedKey(name=access_key, user="bob", created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)))
        await self.keeper.settle_all()
