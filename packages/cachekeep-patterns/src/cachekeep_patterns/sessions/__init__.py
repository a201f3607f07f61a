"""Server-side sessions in Valkey or Redis: merged field by field, rotated at login, ended everywhere at once.

    store = SessionStore(valkey.Valkey(...))           # or AsyncSessionStore(valkey.asyncio.Valkey(...))
    session = store.load(session_id)                    # new and empty if there is none
    session["cart"] = [7]
    session.login("ada")                                # the save gives it a new id
    store.save(session)                                 # writes "cart" and the login, nothing else

For web frameworks see `cachekeep_patterns.contrib`.
"""

from .codec import EXACT, JSON, MSGPACK, Codec, encrypted
from .cookie import Cookie
from .errors import (
    SessionCannotDecode,
    SessionCannotEncode,
    SessionConflict,
    SessionError,
    SessionHeadersSent,
    SessionNotLoaded,
    SessionTooLarge,
    SessionUnavailable,
)
from .ids import SessionId, Signer
from .operations import Policy, Saved, SessionSeen
from .session import Session
from .store import AsyncSessionStore, Retry, SessionStore

__all__ = [
    "EXACT",
    "JSON",
    "MSGPACK",
    "AsyncSessionStore",
    "Codec",
    "Cookie",
    "Policy",
    "Retry",
    "Saved",
    "Session",
    "SessionCannotDecode",
    "SessionCannotEncode",
    "SessionConflict",
    "SessionError",
    "SessionHeadersSent",
    "SessionId",
    "SessionNotLoaded",
    "SessionSeen",
    "SessionStore",
    "SessionTooLarge",
    "SessionUnavailable",
    "Signer",
    "encrypted",
]
