"""The operations: one function each. A request writes what is wanted, an event and a wake, in one transaction; then it is over."""

from cachekeep.services.core.context import ServiceSettings
from cachekeep.services.core.dispatch import Services
from cachekeep.services.served import SERVICES

__all__ = ["SERVICES", "ServiceSettings", "Services"]
