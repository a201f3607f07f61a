"""Every parameter of every operation that is served does what is declared of it, or is refused. Nothing is accepted and ignored.

An effect is seen: without the parameter (or with another value, where it is required) the same request ends in other answers of the
API, of its own or of any Describe.
"""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Final

import pytest
from msgspec.structs import replace
from tests.services.examples import EXAMPLES, NEXT_PAGE, WEB, WEB_IN, permissions
from tests.services.rig import ACCOUNT, CATALOGUE, SetClock
from tests.services.world import World

from cachekeep.model.scaling import ScalableTarget, ScalingActivity
from cachekeep.model.updates import ServiceUpdate, UpdateAsked
from cachekeep.services import SERVICES
from cachekeep.services.core.operation import Operation, Service
from cachekeep.services.core.parameters import Effect, Moot, Never, NotYet, listed, of
from cachekeep.wire.codec import codec
from cachekeep.wire.faults import ApiError
from cachekeep.wire.model import Shape, service_model
from cachekeep.wire.validate import matches

Params = dict[str, Any]
MODELLED: Final = {service.name: service for service in SERVICES if service.parameters is not None}


# ------------------------------------------------------------------ the rows


def rows(*kinds: type) -> list[Any]:
    """Operation and parameter of each kind."""
    found = []
    for service in MODELLED.values():
        for name, operation in sorted(service.operations.items()):
            for path, shape, required in _listed(service, name, operation):
                declared = of(service.parameters or {}, name, path)
                if isinstance(declared, kinds):
                    found.append(pytest.param(service.name, name, path, shape, required, declared, id=f"{name}-{path}"))
    return found


def _listed(service: Service, name: str, operation: Operation) -> Iterator[tuple[str, Shape, bool]]:
    if operation.mode != "refuses":
        yield from listed(service.parameters or {}, name, service_model(service.name).operation(name).input)


def test_every_parameter_is_declared_and_nothing_else_is() -> None:
    for service in MODELLED.values():
        declared, used = service.parameters or {}, set()
        for name, operation in service.operations.items():
            for path, _, _ in _listed(service, name, operation):
                assert of(declared, name, path) is not None, f"{service.name}:{name}.{path}"
                used.add(f"{name}:{path}" if f"{name}:{path}" in declared else path)
        assert set(declared) == used


def test_every_service_of_aws_declares_its_parameters() -> None:
    assert {service.name for service in SERVICES if service.title} == set(MODELLED)


def test_what_nobody_has_declared_is_refused() -> None:
    """As one is that a newer model brings."""
    result, *told = outcome("elasticache", "ModifyReplicationGroup", {"ReplicationGroupId": "demo", "Newest": True})
    assert result[0] == "InvalidParameterCombination"
    assert "The parameter Newest is not supported" in result[1]
    assert told == [untouched(), untouched()]


# ------------------------------------------------------------------ what comes of a request


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes by chance would look different, too."""
    monkeypatch.setattr(secrets, "token_bytes", lambda count: bytes(count))
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00" * count)


class StillClock(SetClock):
    """It stands still: what was made at another time would look different."""

    ids = 0

    def new_id(self) -> str:
        self.ids += 1
        return str(uuid.UUID(int=self.ids))

    def now(self) -> dt.datetime:
        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + self.passed


@cache
def filled() -> World:
    """Three groups, one with cluster mode and one of Redis; a single node; Memcached; and more than a page of everything."""
    world = World(StillClock())

    async def fill() -> None:
        await world.fill()
        node = {"ReplicationGroupDescription": "d", "CacheNodeType": "cache.t3.micro"}
        valkey = node | {"Engine": "valkey", "EngineVersion": "8.0"}
        shards = {"NumNodeGroups": 2, "ReplicasPerNodeGroup": 2}
        await world.ask("CreateReplicationGroup", {"ReplicationGroupId": "many"} | valkey | shards)
        redis = {"Engine": "redis", "EngineVersion": "7.0", "NumCacheClusters": 2, "AutomaticFailoverEnabled": True}
        await world.ask("CreateReplicationGroup", {"ReplicationGroupId": "red"} | node | redis)
        await world.keeper.settle_all()
        for number in range(21):
            await world.ask("CreateReplicationGroup", {"ReplicationGroupId": f"x{number}"} | valkey)
            family = {"CacheParameterGroupFamily": "redis7", "Description": "d"}
            await world.ask("CreateCacheParameterGroup", {"CacheParameterGroupName": f"x{number}"} | family)
            subnets = {"CacheSubnetGroupDescription": "d", "SubnetIds": ["subnet-12345678"]}
            await world.ask("CreateCacheSubnetGroup", {"CacheSubnetGroupName": f"x{number}"} | subnets)
            lock = {"Engine": "valkey", "AccessString": "on +@all", "Passwords": ["p" * 16]}
            await world.ask("CreateUser", {"UserId": f"x{number}", "UserName": f"x{number}"} | lock)
            await world.ask("CreateUserGroup", {"UserGroupId": f"x{number}", "Engine": "valkey", "UserIds": [f"x{number}"]})
        lock = {"Engine": "redis", "AccessString": "on ~* +@all", "Passwords": ["p" * 16]}
        for id, name in (("app", "app"), ("spare", "spare"), ("shut", "default")):
            await world.ask("CreateUser", {"UserId": id, "UserName": name} | lock)
        for id in ("team", "free"):
            await world.ask("CreateUserGroup", {"UserGroupId": id, "Engine": "redis", "UserIds": ["shut", "app"]})
        await world.ask("ModifyReplicationGroup", {"ReplicationGroupId": "red", "UserGroupIdsToAdd": ["team"]})
        shut = {"TransitEncryptionEnabled": True, "AuthToken": "a-token-of-16-or-more"}
        await world.ask("CreateReplicationGroup", {"ReplicationGroupId": "closed"} | valkey | shut)
        lone = {"CacheClusterId": "lone", "Engine": "valkey", "EngineVersion": "8.0", "CacheNodeType": "cache.t3.micro"}
        await world.ask("CreateCacheCluster", lone | shut)
        values = [
            {"ParameterName": "timeout", "ParameterValue": "30"},
            {"ParameterName": "maxmemory-samples", "ParameterValue": "9"},
        ]
        await world.ask("ModifyCacheParameterGroup", {"CacheParameterGroupName": "mine", "ParameterNameValues": values})
        await world.ask("CreateSecurityGroup", {"GroupName": "web", "Description": "d"}, "ec2")
        for way in ("Egress", "Ingress"):
            await world.ask(f"AuthorizeSecurityGroup{way}", permissions(6379), "ec2")
        tags = [{"Key": "team", "Value": "web"}, {"Key": "site", "Value": "x"}]
        await world.ask("CreateTags", {"Resources": [WEB, WEB_IN], "Tags": tags}, "ec2")
        arn = "arn:aws:elasticache:us-east-1:000000000000:cluster:one"
        async with world.store.transaction() as tx:
            asked_at = UpdateAsked(at=world.clock.now(), by="customer")
            for name, engine, line in (("first", "valkey", "8.0"), ("second", "redis", "7.0")):
                there = await tx.cache("demo", "group"), await tx.cache("one", "cluster"), await tx.cache("red", "group")
                caches = [cache for cache in there if cache is not None]
                update = ServiceUpdate(
                    name=name,
                    engine=engine,
                    line=line,
                    build=f"{line}.99",
                    program=CATALOGUE.builds[0].program if engine == "redis" else "valkey-8.0.1+tls",
                    severity="critical",
                    cures=(),
                    released_at=world.clock.now() + dt.timedelta(days=len(name)),
                    asked={cache.uid: replace(asked_at, stopped=cache.name == "one") for cache in caches},
                )
                await tx.put(update)
        scope = {"ServiceNamespace": "elasticache", "ResourceId": "replication-group/many"}
        for number in ("NodeGroups", "Replicas"):
            asked = scope | {"ScalableDimension": f"elasticache:replication-group:{number}"}
            bounds = {"MinCapacity": 1, "MaxCapacity": 4, "Tags": {"k": "v"}}
            await world.ask("RegisterScalableTarget", asked | bounds, "application-autoscaling")
            metric = {"MetricName": number, "Namespace": "Shop", "Statistic": "Sum"}
            policy = {"TargetTrackingScalingPolicyConfiguration": {"TargetValue": 50.0, "CustomizedMetricSpecification": metric}}
            for name in ("one", "two"):
                metric["MetricName"] = f"{number}{name}"
                await world.ask(
                    "PutScalingPolicy",
                    asked | {"PolicyName": name, "PolicyType": "TargetTrackingScaling"} | policy,
                    "application-autoscaling",
                )
                action = {"ScheduledActionName": name, "Schedule": "rate(1 hour)", "ScalableTargetAction": {"MinCapacity": 2}}
                await world.ask("PutScheduledAction", asked | action, "application-autoscaling")
            async with world.store.transaction() as tx:
                for index, reason in enumerate(("", "AlreadyAtMaxCapacity")):
                    at = world.clock.now() + dt.timedelta(seconds=index)
                    target = ScalableTarget.named(asked["ResourceId"], asked["ScalableDimension"])
                    done: dict[str, Any] = {"before": 1, "desired": 2, "started_at": at, "not_scaled": reason}
                    await tx.put(ScalingActivity(name=f"{number}{index}|{'0' * 32}", target=target, cause="c", **done))
        await world.ask(
            "AddTagsToResource", {"ResourceName": arn, "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]}
        )
        await world.keeper.settle_all()
        for number in range(21):
            await world.ask("CreateSnapshot", {"SnapshotName": f"s{number}", "ReplicationGroupId": f"x{number}"})
        await world.ask("CreateSnapshot", {"SnapshotName": "sharded", "ReplicationGroupId": "many"})
        await world.keeper.settle_all()
        for number in range(501):
            at = dt.datetime(2025, 12, 31, 18 if number else 23, tzinfo=dt.UTC)
            told = {"MetricName": f"M{number}", "Timestamp": at, "Value": float(number), "Unit": "Count"}
            await world.ask("PutMetricData", {"Namespace": "Mine", "MetricData": [told]}, "cloudwatch")
        told = {"MetricName": "M1", "Dimensions": [{"Name": "Host", "Value": "a"}], "Values": [1.0, 5.0], "Unit": "Bytes"}
        other = {"MetricName": "M1", "Dimensions": [{"Name": "Host", "Value": "b"}], "Value": 1.0}
        await world.ask("PutMetricData", {"Namespace": "Mine", "MetricData": [told, other]}, "cloudwatch")

    asyncio.run(fill())
    return world


async def _answer(world: World, service: str, operation: str, params: Params) -> Any:
    wire = codec(service)
    try:
        wire.validator.check(wire.model.operation(operation), params)
        return await world.ask(operation, params, service)
    except ApiError as error:
        return error.code, error.message


async def _seen(world: World) -> list[Any]:
    """What the API tells of everything there is."""
    found = [await _answer(world, "elasticache", "DescribeReplicationGroups", {})]
    found.append(await _answer(world, "elasticache", "DescribeCacheClusters", {"ShowCacheNodeInfo": True}))
    for asked in ("DescribeEvents", "DescribeSnapshots", "DescribeUsers", "DescribeUserGroups"):
        found.append(await _answer(world, "elasticache", asked, {}))
    found.append(await _tags(world, "snapshot", "new"))
    groups = await _answer(world, "elasticache", "DescribeCacheParameterGroups", {})
    found += [groups, await _answer(world, "elasticache", "DescribeCacheSubnetGroups", {})]
    found += [await _answer(world, "ec2", f"DescribeSecurityGroup{what}", {}) for what in ("s", "Rules")]
    for name in ("mine", "new"):
        found.append(
            await _answer(world, "elasticache", "DescribeCacheParameters", {"CacheParameterGroupName": name, "Source": "user"})
        )
    for kind, name in (("replicationgroup", "demo"), ("replicationgroup", "new"), ("cluster", "one"), ("cluster", "new")):
        found.append(await _tags(world, kind, name))
    for name in ("bob", "eve", "idle", "new"):
        for asked in ("GetUser", "ListUserPolicies", "ListAttachedUserPolicies", "ListAccessKeys"):
            found.append(await _answer(world, "iam", asked, {"UserName": name}))
    found.append(await _answer(world, "iam", "GetUserPolicy", {"UserName": "bob", "PolicyName": "new"}))
    for name in ("ops", "dev", "idle", "new"):
        for asked in ("GetGroup", "ListGroupPolicies", "ListAttachedGroupPolicies"):
            found.append(await _answer(world, "iam", asked, {"GroupName": name}))
    for name in ("ops-role", "dev-role", "new"):
        for asked in ("GetRole", "ListRolePolicies", "ListAttachedRolePolicies"):
            found.append(await _answer(world, "iam", asked, {"RoleName": name}))
    for kind, about in (("Group", {"GroupName": "ops"}), ("Role", {"RoleName": "ops-role"})):
        found.append(await _answer(world, "iam", f"Get{kind}Policy", about | {"PolicyName": "new"}))
    keys = await _answer(world, "kms", "ListKeys", {})
    found += [keys, await _answer(world, "kms", "ListAliases", {})]
    for name in ("alias/1", "alias/new", *[key["KeyId"] for key in keys["Keys"]]):
        for asked in ("DescribeKey", "GetKeyPolicy", "ListResourceTags"):
            found.append(await _answer(world, "kms", asked, {"KeyId": name}))
    for name in ("ops-policy", "new"):
        about = {"PolicyArn": f"arn:aws:iam::{ACCOUNT}:policy/{name}"}
        found.append(await _answer(world, "iam", "GetPolicy", about))
        for version in ("v1", "v3"):
            found.append(await _answer(world, "iam", "GetPolicyVersion", about | {"VersionId": version}))
    for what in ("ScalableTargets", "ScalingPolicies", "ScheduledActions"):
        found.append(await _answer(world, "application-autoscaling", f"Describe{what}", {"ServiceNamespace": "elasticache"}))
    found.append(await _answer(world, "elasticache", "DescribeUpdateActions", {}))
    async with world.store.reading() as tx:
        found.append([target.tags for target in await tx.list(ScalableTarget)])
    for series in await world.archive.find():
        if series.source.namespace.startswith("New"):
            found.append((series, await world.archive.read([series.id], 0, 1 << 40, 60)))
    return [*found, *[await _tags(world, kind, "new") for kind in ("parametergroup", "subnetgroup", "user", "usergroup")]]


async def _tags(world: World, kind: str, name: str) -> Any:
    arn = f"arn:aws:elasticache:us-east-1:000000000000:{kind}:{name}"
    return await _answer(world, "elasticache", "ListTagsForResource", {"ResourceName": arn})


@cache
def _outcome(service: str, operation: str, text: str) -> Any:
    params: Params = eval(text, {"datetime": dt})

    world = filled().copy()

    async def main() -> Any:
        answer = await _answer(world, service, operation, params)
        if MODELLED[service].operations[operation].mode == "reads":
            return answer
        between = await _seen(world)
        await world.keeper.settle_all()
        return answer, between, await _seen(world)

    return asyncio.run(main())


@cache
def untouched() -> Any:
    return asyncio.run(_seen(filled().copy()))


def outcome(service: str, operation: str, params: Params) -> Any:
    """The answer to a request and, if it writes, all that is told of everything then and when its keeper is done."""
    if NEXT_PAGE in params.values():
        (marker,) = (name for name, value in params.items() if value == NEXT_PAGE)
        first = _outcome(service, operation, repr({name: value for name, value in params.items() if name != marker}))
        page = first.get("EngineDefaults", first)
        params = params | {marker: page.get(f"Next{marker}") or page[marker]}
    return _outcome(service, operation, repr(params))


def answered(result: Any) -> bool:
    """Whether it was no refusal."""
    return isinstance(result[0] if isinstance(result, tuple) else result, Mapping)


# ------------------------------------------------------------------ the same request, but for one parameter


def places(value: Any, path: list[str]) -> Iterator[Params]:
    """The structures that have the parameter."""
    if isinstance(value, list):
        for each in value:
            yield from places(each, path)
    elif isinstance(value, dict) and path[0] in value:
        if len(path) == 1:
            yield value
        else:
            yield from places(value[path[0]], path[1:])


def changed(params: Params, path: str, change: Callable[[Params, str], Any]) -> Params | None:
    """The request after a change wherever it has the parameter; None if it has it nowhere."""
    new = copy.deepcopy(params)
    found = list(places(new, path.split(".")))
    for place in found:
        change(place, path.rpartition(".")[2])
    return new if found else None


def _drop(place: Params, name: str) -> None:
    del place[name]


def _other(place: Params, name: str) -> None:
    value = place[name]
    place[name] = (
        (not value)
        if isinstance(value, bool)
        else value + 1
        if isinstance(value, int | float)
        else type(value)()
        if isinstance(value, list | dict)
        else value + dt.timedelta(hours=1)
        if isinstance(value, dt.datetime)
        else value + (b"x" if isinstance(value, bytes) else "x")
    )


def examples(service: str, operation: str, path: str) -> list[Params]:
    """Those that have the parameter."""
    mine = EXAMPLES.get(f"{service}:{operation}", [])
    return [each for each in mine if next(places(each, path.split(".")), None) is not None]


# ------------------------------------------------------------------ the tests


@pytest.mark.parametrize(("service", "operation", "path", "shape", "required", "declared"), rows(Effect))
def test_an_effect_is_seen(service: str, operation: str, path: str, shape: Shape, required: bool, declared: Effect) -> None:
    mine = examples(service, operation, path)
    assert mine, f"tests/services/examples.py has no request with {path}"
    for params in mine:
        other = changed(params, path, _other if required else _drop)
        assert other is not None
        one, two = outcome(service, operation, params), outcome(service, operation, other)
        if one != two and (answered(one) or answered(two)):
            return
    pytest.fail(f"{path} makes no difference in any of {mine}")


@pytest.mark.parametrize(("service", "operation"), [key.split(":") for key in EXAMPLES], ids=list(EXAMPLES))
def test_the_first_example_is_answered(service: str, operation: str) -> None:
    first = EXAMPLES[f"{service}:{operation}"][0]
    assert answered(outcome(service, operation, first)), outcome(service, operation, first)


def values(shape: Shape) -> list[Any]:
    """Some that the model allows."""
    match shape.type:
        case "boolean":
            return [True, False]
        case "integer" | "long":
            return [max(shape.minimum or 1, 1), min(shape.maximum or 60, 60)]
        case "double":
            return [1.0]
        case "timestamp":
            return [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]
        case "list":
            return [[value] for value in values(shape.item.shape)]
        case "map":
            return [{f"k{number}": values(shape.value.shape)[0] for number in range(shape.minimum or 1)}]
        case "structure":
            return [{name: values(member.shape)[0] for name, member in shape.members.items()}]
    words = [word.ljust(shape.minimum or 0, "x") for word in ("redis", "/redis")]
    return list(shape.enum) or [text for text in words if matches(shape.pattern or ".*", text)][:1]


def least(service: str, operation: str, path: str, value: Any) -> Params:
    """The plainest request of an operation, with the parameter."""
    params = copy.deepcopy(EXAMPLES[f"{service}:{operation}"][-1])
    above, *rest = path.split(".")[:-1] or [""]
    place, shape = params, service_model(service).operation(operation).input
    for name in (above, *rest) if above else ():
        assert shape is not None
        shape = shape.members[name].shape
        found = place.setdefault(name, [{}] if shape.type == "list" else {})
        place, shape = (found[0], shape.item.shape) if shape.type == "list" else (found, shape)
    place[path.rpartition(".")[2]] = value
    return params


@pytest.mark.parametrize(("service", "operation", "path", "shape", "required", "declared"), rows(Moot))
def test_what_is_moot_changes_no_answer(
    service: str, operation: str, path: str, shape: Shape, required: bool, declared: Moot
) -> None:
    for value in values(shape):
        params = least(service, operation, path, value)
        without = changed(params, path, _drop)
        assert without is not None
        assert answered(outcome(service, operation, params))
        assert outcome(service, operation, params) == outcome(service, operation, without)


@pytest.mark.parametrize(("service", "operation", "path", "shape", "required", "declared"), rows(NotYet, Never))
def test_what_has_no_effect_is_refused(
    service: str, operation: str, path: str, shape: Shape, required: bool, declared: NotYet | Never
) -> None:
    for value in values(shape):
        if isinstance(declared, NotYet) and value in declared.off:
            continue
        result = outcome(service, operation, least(service, operation, path, value))
        if MODELLED[service].operations[operation].mode != "reads":
            result, *told = result
            assert told == [untouched(), untouched()], "something was changed"
        if isinstance(declared, Never):
            assert result == ("InvalidParameterValue", declared.words)
        else:
            assert result[0] == "InvalidParameterCombination"
            assert f"{declared.what} ({path}) is not supported" in result[1]


OFF = [row for row in rows(NotYet) if row.values[5].off]


@pytest.mark.parametrize(("service", "operation", "path", "shape", "required", "declared"), OFF)
def test_a_value_that_asks_for_nothing_changes_nothing(
    service: str, operation: str, path: str, shape: Shape, required: bool, declared: NotYet
) -> None:
    for value in declared.off:
        params = least(service, operation, path, value)
        without = changed(params, path, _drop)
        assert without is not None
        assert answered(outcome(service, operation, params))
        assert outcome(service, operation, params) == outcome(service, operation, without)
