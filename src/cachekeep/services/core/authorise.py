"""Who may do what. Every operation of every service passes here, and nowhere else."""

from __future__ import annotations

from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Operation
from cachekeep.store.contract import Transaction
from cachekeep.wire.gateway import Call


async def authorise(call: Call, operation: Operation, tx: Transaction, context: Context) -> None:
    """Let a call pass to its handler, in the handler's own transaction. Whoever has signed is the account's root, which may do
    everything."""
