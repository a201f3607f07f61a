"""Memory: what is wanted and what has been decided, kept in SQLite, in PostgreSQL, or (simulation) nowhere."""

from cachekeep.store.contract import AddressTaken, AlreadyThere, Lease, Store, StoreFailed, Transaction
from cachekeep.store.families.events import Cursor
from cachekeep.store.families.resources import Resource
from cachekeep.store.journal import FileDisk, Journal
from cachekeep.store.journaled import JournaledStore
from cachekeep.store.lock import DataDirLock
from cachekeep.store.memory import MemoryStore
from cachekeep.store.sql import SqlStore

__all__ = [
    "AddressTaken",
    "AlreadyThere",
    "Cursor",
    "DataDirLock",
    "FileDisk",
    "Journal",
    "JournaledStore",
    "Lease",
    "MemoryStore",
    "Resource",
    "SqlStore",
    "Store",
    "StoreFailed",
    "Transaction",
]
