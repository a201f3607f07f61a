"""Processes of this machine."""

from cachekeep.compute.local.driver import LocalDriver
from cachekeep.compute.local.limits import Capacity

__all__ = ["Capacity", "LocalDriver"]
