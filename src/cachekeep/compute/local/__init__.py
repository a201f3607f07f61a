"""Processes of this machine."""

from cachekeep.compute.local.driver import LocalDriver

__all__ = ["LocalDriver"]
