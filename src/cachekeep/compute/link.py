"""The real ``Link``: one kept line per node, over which it is looked at, ordered and felt its pulse. Each is a room of its own."""

from __future__ import annotations

from collections.abc import Callable

from cachekeep.clock import Clock
from cachekeep.compute.beliefs import Beliefs
from cachekeep.compute.commands import Commands
from cachekeep.compute.contract import ApplyParts, CarriedBy, Key, LinkEffect, Memory, PublishDiscovery, Target, Targets
from cachekeep.compute.lines import Lines
from cachekeep.compute.looks import Looks
from cachekeep.compute.orders import Orders
from cachekeep.compute.paused_moves import PausedMoves
from cachekeep.compute.pulse import Moments, Pulse
from cachekeep.compute.slots import Slots
from cachekeep.compute.spares import Spares
from cachekeep.model import (
    Admit,
    Bind,
    Convert,
    Detach,
    Disown,
    Elect,
    Follow,
    HandOver,
    Interrupt,
    Introduce,
    Meet,
    MoveSlots,
    NodeView,
    Own,
    Promote,
    Replicate,
    Settle,
    Swap,
    Witness,
)


class EngineLink:
    """``cachekeep.compute.contract.Link`` over real engines.

    ``memory`` remembers order numbers, and what nodes say that they hold. ``spares`` holds spare lines; None: there are none.
    """

    def __init__(self, memory: Memory, clock: Clock, spares: Spares | None = None) -> None:
        self._clock = clock
        self._lines = Lines(clock, self._lost, spares)
        self.commands = Commands(memory, self._lines, clock)
        self._beliefs = Beliefs(self.commands, clock)
        self._looks = Looks(memory, self._lines, self._beliefs, clock)
        self._pulses: dict[Key, Pulse] = {}
        self._moments: Moments | None = None
        orders = Orders(self.commands, self._beliefs, self._looks, self._lines, clock)
        moves = PausedMoves(self.commands, self._beliefs, orders, clock)
        slots = Slots(self.commands, self._beliefs, self._lines, clock)
        self.carried_by: CarriedBy = {
            Promote: orders.promote,
            Follow: orders.follow,
            Detach: orders.detach,
            Witness: orders.witness,
            Admit: orders.admit,
            Interrupt: orders.interrupt,
            Bind: orders.bind,
            ApplyParts: orders.apply_parts,
            PublishDiscovery: orders.publish_discovery,
            Elect: orders.elect,
            Replicate: orders.replicate,
            Meet: orders.meet,
            Introduce: orders.introduce,
            Disown: orders.disown,
            HandOver: moves.hand_over,
            Convert: moves.convert,
            Swap: moves.swap,
            Own: slots.own,
            Settle: slots.settle,
            MoveSlots: slots.move_slots,
        }

    async def look(self, target: Target, *, deadline_seconds: float) -> NodeView:
        return await self._looks.look(target, deadline_seconds=deadline_seconds)

    async def carry(self, effect: LinkEffect, at: Targets) -> None:
        await self.carried_by[type(effect)](effect, at)

    # -- heartbeats

    def watch(self, target: Target, *, interval_seconds: float, deadline_seconds: float, wake: Callable[[Key], None]) -> None:
        terms = (target, interval_seconds, deadline_seconds, wake)
        old = self._pulses.get(target.key)
        if old is not None:
            if old.terms == terms:
                return  # asked for at every pass; begun anew, its first answer would wake for the next one, and so for ever
            old.stop()
        self._moments = self._moments or Moments()
        self._pulses[target.key] = Pulse(
            target,
            open_line=lambda: self._lines.open(target),
            give_up=lambda: self._lines.give_up(target.key),
            interval_seconds=interval_seconds,
            deadline_seconds=deadline_seconds,
            wake=wake,
            moments=self._moments,
            heard=lambda reply, asked_at: self.commands.heard(target, reply, asked_at),
            clock=self._clock,
        )

    def unwatch(self, key: Key) -> None:
        pulse = self._pulses.pop(key, None)
        if pulse is not None:
            pulse.stop()
        self._beliefs.forget(key)
        self._looks.forget(key)
        self._lines.forget(key)

    async def aclose(self) -> None:
        for key in {*self._pulses, *self._looks.keys()}:
            self.unwatch(key)
        await self._lines.aclose()

    def _lost(self, key: Key) -> None:
        if key in self._pulses:
            self._pulses[key].lost()
