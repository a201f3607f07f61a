"""Processes of this machine."""

from cachekeep.compute.local.driver import LocalDriver
from cachekeep.compute.local.limits import Capacity
from cachekeep.compute.local.zones import ZoneNets

__all__ = ["Capacity", "LocalDriver", "ZoneNets"]
