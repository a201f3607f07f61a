"""Workers that do by themselves what users might ask for. One of each works in an installation (``control.workers.Single``)."""

from __future__ import annotations

from cachekeep.clock import Clock
from cachekeep.services.autoscaling.scaler import Scaler
from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.dispatch import Services
from cachekeep.services.core.inside import asker
from cachekeep.services.elasticache.patcher import Patcher
from cachekeep.store.contract import Store


def workers(services: Services, store: Store, settings: ServiceSettings, clock: Clock) -> dict[str, Scaler | Patcher]:
    """By the names of their leases."""
    ask = asker(services.dispatch, settings, clock)
    return {"scaler": Scaler(store, clock, ask), "patcher": Patcher(store, clock, services, ask)}
