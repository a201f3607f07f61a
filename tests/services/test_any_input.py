"""Whatever the model allows is answered or refused with an error of the API: no handler falls over."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.services.rig import ACCOUNT
from tests.services.world import World

from cachekeep.services import elasticache
from cachekeep.services.core.operation import Operation
from cachekeep.wire.codec import codec
from cachekeep.wire.faults import ApiError
from cachekeep.wire.model import Shape, service_model

WORDS = (
    "demo demo-001 demo-002 one mc mc2 new 0001 0002 1 x default default.valkey8 default.redis7.cluster.on mine sub valkey redis "
    "memcached 8.0 9.1 7.1 6.x 1.6.17 9.9 8.0.1 nonsense cache.t3.micro cache.m7g.large cache.nano us-east-1a us-east-1b mars "
    "subnet-12345678 sg-12345678 sun:05:00-sun:06:00 mon:23:30-tue:00:30 03:00-04:00 23:30-00:30 valkey8 redis7 "
    "timeout 30 maxmemory "
    "reserved-memory 100 cluster-enabled yes replication-group cache-cluster user cross-az single-az enabled disabled ipv4"
)
ARNS = [
    f"arn:aws:elasticache:us-east-1:{ACCOUNT}:{kind}:{name}"
    for kind, name in (("replicationgroup", "demo"), ("cluster", "mc"), ("parametergroup", "mine"), ("snapshot", "x"))
]


def inputs(shape: Shape, depth: int = 0) -> st.SearchStrategy[Any]:
    match shape.type:
        case "structure":
            # Mostly few members, so that handlers are reached behind their first check.
            members = {name: inputs(member.shape, depth + 1) for name, member in shape.members.items()}
            required = {name: members.pop(name) for name in shape.required}
            return (
                st.fixed_dictionaries(required, optional=members)
                if depth
                else st.builds(
                    lambda needed, extra: needed | extra,
                    st.fixed_dictionaries(required),
                    st.lists(st.sampled_from(sorted(members)), max_size=5, unique=True).flatmap(
                        lambda names: st.fixed_dictionaries({name: members[name] for name in names})
                    )
                    if members
                    else st.just({}),
                )
            )
        case "list":
            return st.lists(inputs(shape.item.shape, depth + 1), min_size=shape.minimum or 0, max_size=3)
        case "boolean":
            return st.booleans()
        case "integer" | "long":
            return st.one_of(st.integers(-1, 8), st.integers(-(2**31), 2**31 - 1))
        case "double" | "float":
            return st.floats(allow_nan=False)
        case "timestamp":
            return st.datetimes(timezones=st.just(dt.UTC))
        case "string":
            if shape.enum:
                return st.sampled_from(shape.enum)
            return st.one_of(st.sampled_from(WORDS.split()), st.sampled_from(ARNS), st.text(max_size=20))
    return st.none()


def cases(operation: str) -> st.SearchStrategy[dict[str, Any]]:
    shape = service_model("elasticache").operation(operation).input
    return inputs(shape) if shape else st.just({})


def names() -> list[str]:
    table: dict[str, Operation] = dict(elasticache.SERVICE.operations)
    return sorted(name for name, operation in table.items() if operation.mode != "refuses")


@pytest.mark.parametrize("operation", names())
def test_any_input(operation: str) -> None:
    wire, filled = codec("elasticache"), World()
    asyncio.run(filled.fill())
    modelled = wire.model.operation(operation)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(cases(operation))
    def check(params: dict[str, Any]) -> None:
        async def main() -> None:
            world = filled.copy()
            try:
                wire.validator.check(modelled, params)
                answer = await world.ask(operation, params)
            except ApiError as error:
                status = error.status
            else:
                status = 200
                wire.write(modelled, "query", answer, "request-id")
                await world.keeper.settle_all()
            assert status < 500

        asyncio.run(main())

    check()
