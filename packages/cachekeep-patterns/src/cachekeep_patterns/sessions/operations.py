"""What the store does, without I/O: generators that yield calls and are sent replies.

Both stores, sync and async, run these same generators, so there is one semantics. Every call may be repeated after
an unknown outcome: its arguments (ids, nonces, operation id) are drawn once, before it is first sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

from ..stores.commands import Script
from . import scripts
from .codec import EXACT, Codec, seal_field
from .errors import SessionConflict, SessionError, SessionTooLarge
from .ids import SessionId
from .session import Session

Result = TypeVar("Result")


@dataclass(frozen=True)
class Call:
    """One script on one key."""

    script: Script
    key: str
    args: tuple[bytes | str | int, ...] = ()


Steps: TypeAlias = Generator[Call, Any, Result]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How sessions live. Raises ValueError for what makes no sense.

    idle_seconds: a session ends when it is not used for this long (sliding). Reads push the end only once a
        twentieth of it (at most a minute) has gone, so it may end that much early, never late.
    max_age_seconds: and after this long in any case, counted from its creation or its login; None for no limit.
    max_bytes: of all fields, names and encoded values. A save that would grow beyond it is refused.
    conflict: two requests changed one session. "merge": each field is what the last save made it; fields that a
        request did not change are not touched. "compare": the second save raises SessionConflict.
    in_flight_seconds: after a rotation, requests that began under the old id may still save for this long.
        New requests under the old id are refused at once.
    sessions_per_user: how many handles a user's roster remembers. Logging out everywhere ends forgotten ones too.
    """

    idle_seconds: float = 24 * 3600
    max_age_seconds: float | None = 30 * 24 * 3600
    max_bytes: int = 64 * 1024
    conflict: Literal["merge", "compare"] = "merge"
    in_flight_seconds: float = 10
    sessions_per_user: int = 100
    codec: Codec = EXACT
    prefix: str = "session:"

    def __post_init__(self) -> None:
        if self.idle_seconds <= 0 or self.max_bytes <= 0 or self.sessions_per_user <= 0:
            raise ValueError("idle_seconds, max_bytes and sessions_per_user are positive")
        if self.in_flight_seconds < 0 or (self.max_age_seconds is not None and self.max_age_seconds <= 0):
            raise ValueError("in_flight_seconds is not negative, max_age_seconds positive or None")
        if self.conflict not in ("merge", "compare"):
            raise ValueError(f"conflict is 'merge' or 'compare', not {self.conflict!r}")
        if "{" in self.prefix:
            raise ValueError("a brace in the prefix would put every session into one cluster slot")

    @property
    def idle_ms(self) -> int:
        return max(1, round(self.idle_seconds * 1000))

    @property
    def max_age_ms(self) -> int:
        return 0 if self.max_age_seconds is None else max(1, round(self.max_age_seconds * 1000))

    def record_key(self, handle: str) -> str:
        return f"{self.prefix}{handle}"

    def user_key(self, user: str) -> str:
        return f"{self.prefix}user:{user}"


class Saved(Enum):
    """What a save did."""

    UNCHANGED = "unchanged"
    SAVED = "saved"
    ENDED = "ended"
    """The session's record is deleted."""
    GONE = "gone"
    """The session had been ended, or its id replaced, meanwhile: deletion wins and nothing was written."""


@dataclass(frozen=True)
class SessionSeen:
    """One line of a user's list of sessions."""

    handle: str
    login_seconds: float


def load(policy: Policy, session: Session, session_id: str | None, *, slide: bool = True) -> Steps[bool]:
    """Fill `session`. False, and an empty new session, for an id that is unknown, ended, replaced or malformed:
    an id that the store did not make is never adopted (session fixation).
    """
    session._codec = policy.codec
    session._start_over()
    session.superseded = session.lost = False
    sid = SessionId.parse(session_id)
    if sid is None:
        return False
    status, *rest = yield Call(scripts.LOAD, policy.record_key(sid.handle), (sid.digest, "1" if slide else "0"))
    if status != b"ok":
        session.superseded = status == b"superseded"
        return False
    current, ttl_ms, flat = rest
    record: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
    nonce = b""
    if b"u" in record:
        user = record[b"u"].decode()
        nonce = yield Call(scripts.CHECK, policy.user_key(user), (record[b"e"], ttl_ms))
        if not nonce:
            yield Call(scripts.DELETE, policy.record_key(sid.handle), (b"",))
            return False
        session._user = user
    session._id = sid
    session._id_is_stale = current != b"1"
    session._nonce = nonce
    session._version = int(record[b"v"])
    session._created_ms = int(record[b"c"])
    session._idle_ms = int(record[b"i"])
    session._stored = {name[1:].decode(): value for name, value in record.items() if name[:1] == b":"}
    return True


def touch(policy: Policy, session: Session) -> Steps[bool]:
    """Slide the expiry as a request would (a long websocket). False if the session is over."""
    if session._id is None:
        return False
    return (yield from load(policy, Session(), session.id))


def save(policy: Policy, session: Session, *, extend: bool = False, compare: bool = False) -> Steps[Saved]:
    """Write what changed. `extend` renews the expiry even if nothing did, and makes a record even for an empty
    session; `compare` overrules the policy.

    Raises SessionTooLarge, SessionConflict (both: nothing written) and SessionCannotEncode.
    """
    session._codec = policy.codec
    sets, dels = session._changes()
    ended = False
    while session._to_delete:
        yield from _delete(policy, session._to_delete[0])
        session._to_delete.pop(0)
        ended = True
    if session._id is None:
        if not (sets or session._binding or extend):
            return Saved.ENDED if ended else Saved.UNCHANGED
        if session.superseded and not session._binding:
            session.lost = True
            return Saved.GONE
        return (yield from _create(policy, session, sets))
    if not (sets or dels or extend or session._has_intent):
        return Saved.UNCHANGED

    sid = session._id
    next_sid = sid if session._rotation_grace_ms is None else sid.rotated()
    nonce = (yield from _admit(policy, session, sid)) if session._binding else b""
    expected = str(session._version) if compare or policy.conflict == "compare" else ""
    sealed = _sealed(policy, sid, sets)
    status, *rest = yield _save_call(policy, session, sid, next_sid, sealed, dels, nonce, expected)
    if status == b"gone":
        if session._binding:
            # The login is new and stands for itself; what the session held before is over.
            yield Call(scripts.FORGET, policy.user_key(session._user or ""), (sid.handle,))
            return (yield from _create(policy, session, sets))
        session.lost = True
        return Saved.GONE
    if status == b"conflict":
        raise SessionConflict("somebody else saved this session since it was loaded")
    if status == b"large":
        raise SessionTooLarge(int(rest[0]), policy.max_bytes)
    version, ttl_ms = rest
    if session._user is not None and not session._binding:
        # The user may have been logged out everywhere since the load; and the roster must outlive this record.
        alive = yield Call(scripts.CHECK, policy.user_key(session._user), (session._nonce, ttl_ms))
        if not alive:
            yield Call(scripts.DELETE, policy.record_key(sid.handle), (b"",))
            session.lost = True
            return Saved.GONE
    session._id = next_sid
    session._version = int(version)
    session._nonce = nonce or session._nonce
    session._saved(sets, sealed, dels)
    return Saved.SAVED


def update(policy: Policy, session_id: str | None, change: Callable[[Session], Result], attempts: int) -> Steps[Result]:
    """Load, change, compare-and-set; again if somebody came between. `change` may run several times.

    The way to do read-modify-write (a counter, a list that two requests append to). Raises SessionConflict after
    `attempts`, SessionError if there is no such session.
    """
    for attempt in range(1, attempts + 1):
        session = Session()
        if not (yield from load(policy, session, session_id)):
            raise SessionError("there is no such session")
        result = change(session)
        try:
            outcome = yield from save(policy, session, compare=True)
        except SessionConflict:
            if attempt == attempts:
                raise
            continue
        if outcome is Saved.GONE:
            raise SessionError("the session ended meanwhile")
        return result
    raise ValueError("attempts is at least 1")


def delete(policy: Policy, session_id: str | None) -> Steps[bool]:
    """End the session of this id. False if there was none. Harmless to repeat."""
    sid = SessionId.parse(session_id)
    return False if sid is None else (yield from _delete(policy, sid))


def logout_everywhere(policy: Policy, user: str, keep: Session | None) -> Steps[int]:
    """End every session of `user`, at once for all; `keep`, a loaded session of this user, goes on.

    Returns how many records were removed; those beyond the roster are dead too and go when they expire.
    """
    next_nonce, kept, ttl_ms = secrets.token_bytes(8), "", 0
    if keep is not None:
        if keep._id is None or keep._user != user or keep._binding:
            raise SessionError("the session to keep is a saved one of the same user")
        # First let the kept session live under either nonce, then change the user's: it is never seen dead.
        kept = keep._id.handle
        status, *rest = yield _save_call(policy, keep, keep._id, keep._id, {}, set(), keep._nonce + next_nonce, "", user=user)
        if status != b"ok":
            raise SessionError("the session to keep is over")
        keep._version, ttl_ms = int(rest[0]), int(rest[1])
    dead = yield Call(scripts.REVOKE, policy.user_key(user), (next_nonce, kept, ttl_ms))
    removed = 0
    for handle in dead:
        removed += (yield Call(scripts.DELETE, policy.record_key(handle.decode()), (b"",)))[0] == b"1"
    if keep is not None:
        keep._nonce = next_nonce
    return removed


def sessions_of(policy: Policy, user: str) -> Steps[list[SessionSeen]]:
    """The user's roster, latest login first. A session that ran out may still be named."""
    flat: Sequence[bytes] = yield Call(scripts.ROSTER, policy.user_key(user))
    seen = [
        SessionSeen(name[1:].decode(), int(since) / 1000)
        for name, since in zip(flat[::2], flat[1::2], strict=True)
        if name[:1] == b":"
    ]
    return sorted(seen, key=lambda one: one.login_seconds, reverse=True)


def end(policy: Policy, user: str, handle: str) -> Steps[bool]:
    """End one session of `user` by its handle, from a list of devices. False if it is not one of theirs."""
    if not (yield Call(scripts.FORGET, policy.user_key(user), (handle,))):
        return False
    return bool((yield Call(scripts.DELETE, policy.record_key(handle), (b"",)))[0] == b"1")


def _create(policy: Policy, session: Session, sets: dict[str, bytes]) -> Steps[Saved]:
    sid = SessionId.new()
    nonce = (yield from _admit(policy, session, sid)) if session._binding else b""
    sealed = _sealed(policy, sid, sets)
    status, *rest = yield _save_call(policy, session, sid, sid, sealed, set(), nonce, "", create=True)
    if status == b"large":
        raise SessionTooLarge(int(rest[0]), policy.max_bytes)
    if status != b"ok":
        raise SessionError(f"a new session could not be made: {status.decode()}")
    session._id, session._id_is_stale = sid, False
    session._version, session._nonce = int(rest[0]), nonce
    session._stored, session._as_read, session._live = {}, {}, {name: session._live[name] for name in sets}
    session._saved(sets, sealed, set())
    session.superseded = session.lost = False
    return Saved.SAVED


def _delete(policy: Policy, sid: SessionId) -> Steps[bool]:
    found, user = yield Call(scripts.DELETE, policy.record_key(sid.handle), (sid.digest,))
    if user:
        yield Call(scripts.FORGET, policy.user_key(user.decode()), (sid.handle,))
    return bool(found == b"1")


def _admit(policy: Policy, session: Session, sid: SessionId) -> Steps[bytes]:
    idle_ms = session._new_idle_ms or session._idle_ms or policy.idle_ms
    nonce: bytes = yield Call(
        scripts.ADMIT,
        policy.user_key(session._user or ""),
        (secrets.token_bytes(8), sid.handle, idle_ms, policy.sessions_per_user),
    )
    return nonce


def _sealed(policy: Policy, sid: SessionId, sets: dict[str, bytes]) -> dict[str, bytes]:
    return {name: seal_field(policy.codec, sid.handle, name, encoded) for name, encoded in sets.items()}


def _save_call(
    policy: Policy,
    session: Session,
    sid: SessionId,
    next_sid: SessionId,
    sets: dict[str, bytes],
    dels: set[str],
    nonces: bytes,
    expected: str,
    *,
    create: bool = False,
    user: str | None = None,
) -> Call:
    if user is None:
        user = session._user if session._binding else None
    return Call(
        scripts.SAVE,
        policy.record_key(sid.handle),
        (
            secrets.token_bytes(8),
            "1" if create else "0",
            sid.digest,
            b"" if next_sid == sid else next_sid.digest,
            session._rotation_grace_ms or 0,
            round(policy.in_flight_seconds * 1000),
            expected,
            session._new_idle_ms or session._idle_ms or policy.idle_ms,
            policy.max_age_ms,
            policy.max_bytes,
            user or "",
            nonces,
            len(sets),
            *(part for name, value in sets.items() for part in (f":{name}", value)),
            *(f":{name}" for name in sorted(dels)),
        ),
    )
