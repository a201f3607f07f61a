"""From a call to its handler: hold, transaction, retry."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from msgspec.structs import replace as with_fields

from cachekeep.clock import Clock
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import ApiError, Conflict
from cachekeep.services import ec2, identity
from cachekeep.services.context import Context, ServiceSettings, value_error
from cachekeep.services.elasticache import (
    absent,
    clusters,
    engines,
    events,
    groups,
    parameter_groups,
    replicas,
    resharding,
    subnet_groups,
    tags,
)
from cachekeep.services.hold import Waiting
from cachekeep.services.operation import Operation
from cachekeep.store.contract import Store, StoreFailed
from cachekeep.wire.gateway import Call
from cachekeep.wire.model import service_model

log = logging.getLogger(__name__)

OPERATIONS: Final[Mapping[str, Mapping[str, Operation]]] = {
    "ec2": ec2.OPERATIONS,
    "elasticache": {
        **absent.OPERATIONS,
        **clusters.OPERATIONS,
        **engines.OPERATIONS,
        **events.OPERATIONS,
        **groups.OPERATIONS,
        **parameter_groups.OPERATIONS,
        **replicas.OPERATIONS,
        **resharding.OPERATIONS,
        **subnet_groups.OPERATIONS,
        **tags.OPERATIONS,
    },
    "iam": identity.IAM,
    "sts": identity.STS,
}
"""Every operation that is answered, those that are always refused among them."""

_ATTEMPTS: Final = 5


class Services:
    """The API's operations over a store. A request writes what is wanted and is over; keepers do the rest.

    ``catalogue`` may be replaced (``use``) when an engine has been installed meanwhile.
    """

    def __init__(self, store: Store, catalogue: Catalogue, settings: ServiceSettings, clock: Clock) -> None:
        self._store = store
        self._context = Context(settings, catalogue, clock)
        self._waiting = Waiting(store, clock)

    def served(self) -> Mapping[str, frozenset[str]]:
        """Service → operations, for the gateway."""
        return {service: frozenset(operations) for service, operations in OPERATIONS.items()}

    def use(self, catalogue: Catalogue) -> None:
        """Work with other installed builds from now on."""
        self._context = with_fields(self._context, catalogue=catalogue)

    def close(self) -> None:
        """Let held requests go and stop listening to the store."""
        self._waiting.close()

    async def dispatch(self, call: Call) -> Mapping[str, Any]:
        """Answer a call. Raises ApiError: of what is tried again later, or lost to other writers several times in a row, too."""
        operation = OPERATIONS.get(call.service, {}).get(call.operation)
        if operation is None:
            raise ApiError("InvalidAction", f"{call.service}:{call.operation} is not supported by Cachekeep.")
        if call.service == "elasticache":
            call = _without_blanks(call)
        try:
            return await self._answer(operation, call)
        except (StoreFailed, Conflict) as error:
            log.warning("%s:%s (request %s): %s", call.service, call.operation, call.request_id, error)
            raise _unavailable(operation, error) from error

    async def _answer(self, operation: Operation, call: Call) -> Mapping[str, Any]:
        if operation.held and (name := call.params.get(operation.held.parameter)):
            await self._waiting.settle(operation.held.kind, name.lower(), self._context.settings.hold_seconds)
        if operation.mode != "writes":
            async with self._store.reading() as tx:
                return await operation.handler(call, tx, self._context)
        for attempt in range(_ATTEMPTS):
            try:
                async with self._store.transaction() as tx:
                    return await operation.handler(call, tx, self._context)
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")


def _unavailable(operation: Operation, error: StoreFailed | Conflict) -> ApiError:
    """What every SDK tries again by itself: HTTP 503 [AWS, "Common Error Types": ServiceUnavailable]."""
    if operation.mode != "writes":
        text = "What is stored here cannot be read at the moment. Try again."
    elif isinstance(error, Conflict):
        text = "Others were changing the same at the same time, again and again. Nothing was changed. Try again."
    elif error.unsure:
        text = "The connection to the database broke while the change was being stored: "
        text += "it may have been made, or not. Look, then try again."
    else:
        text = "The database takes no changes at the moment, so nothing was changed. Try again."
    return ApiError("ServiceUnavailable", f"{text} `cachekeep status` and the log of this endpoint say why.", status=503)


def _without_blanks(call: Call) -> Call:
    """Ansible sends ``EngineVersion=`` and Terraform empty lists where they mean "not set" (recorded from both).

    Raises ApiError InvalidParameterValue for a blank that may not be one.
    """
    given = {name: value for name, value in call.params.items() if value is not None and value != "" and value != []}
    asks = service_model(call.service).operation(call.operation).input
    for name in asks.required if asks else ():
        if name not in given:
            raise value_error(f"The parameter {name} must be provided and must not be blank.")
    return replace(call, params=given)
