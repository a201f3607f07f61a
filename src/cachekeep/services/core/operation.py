"""What services and their operations are to the dispatcher: a handler, whether it writes, whether its answer may be held."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec

from cachekeep.model import CacheKind
from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.parameters import Declared
from cachekeep.services.core.rights import Rights
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

Handler = Callable[[Call, Transaction, Context], Awaitable[Mapping[str, Any]]]
Mode = Literal["reads", "writes", "apart", "refuses"]


class Held(msgspec.Struct, frozen=True):
    """A Describe that waits while the one resource that ``parameter`` names is in transition."""

    parameter: str
    kind: CacheKind


class Operation(msgspec.Struct, frozen=True):
    """One operation of a service. ``summary`` is the first line of its handler's docstring, for the reference."""

    handler: Handler
    mode: Mode
    summary: str
    held: Held | None = None


def _as_it_is(call: Call) -> Call:
    return call


async def _as_named(call: Call, tx: Transaction, settings: ServiceSettings) -> Call:
    return call


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service and what it serves. ``title`` is for people, and empty for what is no service of AWS.

    ``parameters`` says what those of its operations do; None for a service without a model. ``prepare`` reads a call the way that
    this service's clients mean it; it may raise ApiError. ``named`` puts ids in the place of other names of resources, by which
    policies do not know them; what there is none of stays as it is, so that nothing is told of it. ``rights`` says how policies see
    its calls.
    """

    name: str
    title: str = ""
    operations: Mapping[str, Operation]
    parameters: Declared | None = None
    prepare: Callable[[Call], Call] = _as_it_is
    named: Callable[[Call, Transaction, ServiceSettings], Awaitable[Call]] = _as_named
    rights: Rights = Rights()


def reads(handler: Handler, held: Held | None = None) -> Operation:
    """An operation that looks at what is stored and changes nothing."""
    return Operation(handler, "reads", _summary(handler), held)


def writes(handler: Handler) -> Operation:
    """An operation that writes what is wanted, in one transaction."""
    return Operation(handler, "writes", _summary(handler))


def apart(handler: Handler) -> Operation:
    """An operation that writes what lies beside the store, and holds up nobody who writes there."""
    return Operation(handler, "apart", _summary(handler))


def refuses(code: str, message: str) -> Operation:
    """An operation that always answers with the same error."""

    async def handler(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
        raise ApiError(code, message)

    return Operation(handler, "refuses", f"`{code}`: {message}")


def _summary(handler: Handler) -> str:
    return (handler.__doc__ or "").strip().partition("\n")[0]
