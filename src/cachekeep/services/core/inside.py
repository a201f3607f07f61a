"""Operations of the API that this installation asks of itself: the same that users have, through the same door."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cachekeep.clock import Clock
from cachekeep.services.core.context import ServiceSettings
from cachekeep.wire.caller import Principal
from cachekeep.wire.gateway import Call, Dispatch

Ask = Callable[[str, str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Service, operation, parameters → the answer. Raises ApiError."""


def asker(dispatch: Dispatch, settings: ServiceSettings, clock: Clock) -> Ask:
    """Asks as the account's root."""
    root = Principal("", f"arn:aws:iam::{settings.account}:root", settings.account)

    async def ask(service: str, operation: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        now = clock.now()
        return await dispatch(Call(service, operation, params, root, settings.region, str(uuid.uuid4()), now, None))

    return ask
