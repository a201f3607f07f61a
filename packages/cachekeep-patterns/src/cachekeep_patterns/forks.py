"""A forked child begins anew: no load in flight, no place taken, nothing near, no socket and no lock of its parent (gunicorn
--preload, multiprocessing, Celery)."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    def forked(self) -> None:
        """We are in a child that was forked just now; no other thread runs."""


_all: weakref.WeakSet[Forked] = weakref.WeakSet()
generation = 0
"""How many forks this process is away from the first one."""


def renew_in_children(one: Forked) -> None:
    _all.add(one)


def _in_child() -> None:
    global generation
    generation += 1
    for one in list(_all):
        one.forked()


os.register_at_fork(after_in_child=_in_child)
