"""From a call to its handler: hold, transaction, authorise, retry."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace as with_fields

from cachekeep.clock import Clock
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import Conflict, InvalidCombination, InvalidValue, Unsealable
from cachekeep.metrics.series import Archive
from cachekeep.security.certs import Authorities
from cachekeep.security.sealing import Sealing
from cachekeep.services.core import parameters
from cachekeep.services.core.authorise import authorise
from cachekeep.services.core.callers import identify
from cachekeep.services.core.context import Context, ServiceSettings, combination_error, value_error
from cachekeep.services.core.hold import Waiting
from cachekeep.services.core.operation import Operation, Service
from cachekeep.store.contract import Store, StoreFailed, Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 5


class Services:
    """Services over a store. A request writes what is wanted and is over; keepers do the rest.

    ``catalogue`` may be replaced (``use``) when an engine has been installed meanwhile.
    """

    def __init__(
        self,
        services: Iterable[Service],
        store: Store,
        catalogue: Catalogue,
        settings: ServiceSettings,
        clock: Clock,
        sealing: Sealing,
        authorities: Authorities | None = None,
        archive: Archive | None = None,
    ) -> None:
        self._services = {service.name: service for service in services}
        self._store = store
        self._context = Context(settings, catalogue, clock, sealing, authorities or Authorities((), sealing), archive or Archive())
        self._waiting = Waiting(store, clock)

    def served(self) -> Mapping[str, frozenset[str]]:
        """Service → operations, for the gateway."""
        return {service.name: frozenset(service.operations) for service in self._services.values()}

    def changes(self, service: str, operation: str) -> bool:
        """Whether an operation writes."""
        row = self._services[service].operations.get(operation)
        return row is not None and row.mode == "writes"

    async def identify(self, call: Call) -> None:
        """Note in the call who is asking, where that is known (``Call.seen``)."""
        with contextlib.suppress(ApiError, StoreFailed):
            async with self._store.reading() as tx:
                await identify(call, tx, self._context.settings.issuer)

    @property
    def catalogue(self) -> Catalogue:
        """The builds that are worked with."""
        return self._context.catalogue

    def use(self, catalogue: Catalogue) -> None:
        """Work with other installed builds from now on."""
        self._context = with_fields(self._context, catalogue=catalogue)

    def close(self) -> None:
        """Let held requests go and stop listening to the store."""
        self._waiting.close()

    async def dispatch(self, call: Call) -> Mapping[str, Any]:
        """Answer a call. Raises ApiError: of what is tried again later, or lost to other writers several times in a row, too."""
        service = self._services.get(call.service)
        operation = service.operations.get(call.operation) if service else None
        if service is None or operation is None:
            raise ApiError("InvalidAction", f"{call.service}:{call.operation} is not supported by Cachekeep.")
        try:
            call = service.prepare(call)
            if operation.mode != "refuses" and service.parameters is not None:
                parameters.check(service.parameters, call.operation, call.params)
            return await self._answer(service, operation, call)
        except InvalidValue as error:
            raise value_error(str(error)) from None
        except InvalidCombination as error:
            raise combination_error(str(error)) from None
        except Unsealable as error:
            log.warning("%s:%s (request %s): %s", call.service, call.operation, call.request_id, error)
            raise ApiError("ServiceUnavailable", f"{error}.", status=503) from None
        except (StoreFailed, Conflict) as error:
            log.warning("%s:%s (request %s): %s", call.service, call.operation, call.request_id, error)
            raise _unavailable(operation, error) from error

    async def _answer(self, service: Service, operation: Operation, call: Call) -> Mapping[str, Any]:
        if operation.held and (name := call.params.get(operation.held.parameter)):
            async with self._store.reading() as tx:  # how long it is held tells what there is, so not to everybody
                await authorise(call, service, tx, self._context)
            await self._waiting.settle(operation.held.kind, name.lower(), self._context.settings.hold_seconds)
        if operation.mode != "writes":
            async with self._store.reading() as tx:
                return await self._handle(service, operation, call, tx)
        for attempt in range(_ATTEMPTS):
            try:
                async with self._store.transaction() as tx:
                    return await self._handle(service, operation, call, tx)
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _handle(self, service: Service, operation: Operation, call: Call, tx: Transaction) -> Mapping[str, Any]:
        """The one way to a handler."""
        call = await service.named(call, tx, self._context.settings)
        call = await authorise(call, service, tx, self._context)
        return await operation.handler(call, tx, self._context)


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
