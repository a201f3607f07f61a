"""Processes of this machine."""

from cachekeep.compute.local.driver import LocalDriver
from cachekeep.compute.local.ledger import KEPT_DIR

__all__ = ["KEPT_DIR", "LocalDriver"]
