"""The operations: one function each. A request writes what is wanted, an event and a wake, in one transaction; then it is over."""

from cachekeep.services.context import ServiceSettings
from cachekeep.services.dispatch import Services

__all__ = ["ServiceSettings", "Services"]
