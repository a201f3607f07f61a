"""The keepers: look, plan, save or act, again and again, one task per cache."""

from cachekeep.control.execute import Hands
from cachekeep.control.keeper import Keeper
from cachekeep.control.observe import Observer

__all__ = ["Hands", "Keeper", "Observer"]
