"""The session a request works with: a mapping that remembers exactly what it changed. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from .codec import EXACT, Codec, codec_of, decode_field, encode_field
from .errors import SessionCannotDecode, SessionCannotEncode
from .ids import SessionId


class Session(MutableMapping[str, Any]):
    """Field names to plain values, as loaded, with this request's changes on top.

    A save sends only what changed. A change inside a value (`session["cart"].append(…)`) counts: every field
    that was read is encoded again and compared with what it was as it was read. Values are decoded when first read.
    """

    def __init__(self) -> None:
        self.accessed = False
        """True once anything read or wrote it (then a response varies on the cookie)."""
        self.superseded = False
        """The client came with an id that a rotation has replaced. Reads as empty; nothing is saved."""
        self.lost = False
        """A save found the record deleted, or the id replaced for too long; the changes were dropped."""
        self.before_access: Callable[[], None] | None = None
        """Called once before the first use; lazy loading hangs here."""
        self._codec: Codec = EXACT
        self._to_delete: list[SessionId] = []
        self._did_end = False
        self._start_over()

    def _start_over(self) -> None:
        self._id: SessionId | None = None
        self._id_is_stale = False
        self._user: str | None = None
        self._nonce = b""
        self._version = 0
        self._created_ms: int | None = None
        self._idle_ms: int | None = None
        self._new_idle_ms: int | None = None
        self._rotation_grace_ms: int | None = None
        self._binding = False
        self._stored: dict[str, bytes] = {}
        self._as_read: dict[str, tuple[Codec, bytes]] = {}  # stored fields: who wrote them, and their values encoded
        self._live: dict[str, Any] = {}
        self._deleted: set[str] = set()

    # What it is

    @property
    def id(self) -> str | None:
        """What the client's cookie holds, before signing. None until the first save of a new session."""
        return None if self._id is None else str(self._id)

    @property
    def handle(self) -> str | None:
        """Names this session for its whole life, and is no secret: show it in a list of devices."""
        return None if self._id is None else self._id.handle

    @property
    def new(self) -> bool:
        """True while no record exists for it."""
        return self._id is None

    @property
    def ended(self) -> bool:
        """True if this request ended a session and began no other: the cookie is to be cleared."""
        return self._did_end and self._id is None

    @property
    def user(self) -> str | None:
        """Who is logged in, as told by `login`."""
        self._use()
        return self._user

    @property
    def created_seconds(self) -> float | None:
        """When the record was made, by the cache's clock, in seconds since the epoch."""
        return None if self._created_ms is None else self._created_ms / 1000

    @property
    def modified(self) -> bool:
        """Whether a save would do anything."""
        return self._has_changes()

    def _has_changes(self) -> bool:
        sets, dels = self._changes()
        return bool(sets or dels or self._has_intent)

    @property
    def _has_intent(self) -> bool:
        return (
            self._binding
            or self._rotation_grace_ms is not None
            or bool(self._to_delete)
            or (self._new_idle_ms is not None and self._new_idle_ms != self._idle_ms)
        )

    @property
    def needs_cookie(self) -> bool:
        """Whether the next save will give it another id."""
        if self._id is None:
            return self._binding or bool(self._live and not self.superseded)
        return self._rotation_grace_ms is not None

    # What can be asked of it

    def login(self, user: str) -> None:
        """Bind the session to `user` and give it a new id: the id from before the login is worth nothing.

        What the anonymous session held is kept. If *another* user was logged in, nothing is. Raises ValueError for an empty name.
        """
        self._use()
        if user and self._user not in (None, user):
            self.clear()
        self.bind(user)
        self.rotate()

    def bind(self, user: str) -> None:
        """The half of `login` that says whose session it is, for frameworks that rotate by themselves.

        Raises ValueError for an empty name, and for another user than the one who is logged in.
        """
        self._use()
        if not user:
            raise ValueError("an empty name is nobody's: nothing was changed")
        if self._user not in (None, user):
            raise ValueError("a session is bound to one user for its whole life")
        self._user = user
        self._binding = True

    def logout(self) -> None:
        """The same as `clear`."""
        self.clear()

    def clear(self) -> None:
        """End the session: its record is deleted. What is set afterwards begins a new one, under a new id."""
        self._use()
        if self._id is not None:
            self._to_delete.append(self._id)
            self._did_end = True
        self._start_over()
        self.superseded = False

    def rotate(self, grace_seconds: float = 0) -> None:
        """Give the session a new id. The old one can still be read with for `grace_seconds`.

        Leave the grace at 0 whenever privileges change; for a rotation by the clock a few seconds spare requests
        that are already on their way.
        """
        self._use()
        if grace_seconds < 0:
            raise ValueError("a grace is not negative")
        self._rotation_grace_ms = round(grace_seconds * 1000)

    def expire_after(self, idle_seconds: float) -> None:
        """This session's own idle time, in place of the policy's."""
        if idle_seconds <= 0:
            raise ValueError("an idle time is positive; to end a session, clear it")
        self._use()
        self._new_idle_ms = max(1, round(idle_seconds * 1000))

    def assign(self, values: Mapping[str, Any]) -> None:
        """Make the fields exactly `values`; what was equal stays unchanged."""
        self._use()
        for name in [name for name in self if name not in values]:
            del self[name]
        for name, value in values.items():
            self[name] = value

    # The mapping

    def __getitem__(self, name: str) -> Any:
        self._use()
        if name in self._live:
            return self._live[name]
        if name in self._deleted:
            raise KeyError(name)
        value = self._live[name] = self._read(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a session field's name is a str, not {type(name).__name__}")
        self._use()
        self._live[name] = value
        self._deleted.discard(name)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._live.pop(name, None)
        self._deleted.add(name)

    def __contains__(self, name: object) -> bool:
        self._use()
        return name in self._live or (name in self._stored and name not in self._deleted)

    def __iter__(self) -> Iterator[str]:
        self._use()
        old = [name for name in self._stored if name not in self._deleted]
        return iter([*old, *(name for name in self._live if name not in self._stored)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.handle or 'new'}>"

    # For the operations

    def _use(self) -> None:
        self.accessed = True
        if (hook := self.before_access) is not None:
            hook()
            self.before_access = None

    def _read(self, name: str) -> Any:
        codec = codec_of(self._codec, name, self._stored[name])
        value = decode_field(codec, self.handle or "", name, self._stored[name])
        self._as_read[name] = (codec, encode_field(codec, name, value))
        return value

    def _changed(self, name: str, value: Any) -> bytes | None:
        """The value encoded, if it is another than the stored one. Only then is it encoded by this session's codec: what was
        merely read stays as whoever wrote it, with whatever codec."""
        if name in self._stored and name not in self._as_read:
            with contextlib.suppress(SessionCannotDecode):  # set without having been read; what is damaged is replaced
                self._read(name)
        if (known := self._as_read.get(name)) is not None:
            codec, encoded = known
            with contextlib.suppress(SessionCannotEncode):
                if encode_field(codec, name, value) == encoded:
                    return None
        return encode_field(self._codec, name, value)

    def _changes(self) -> tuple[dict[str, bytes], set[str]]:
        changed = {name: self._changed(name, value) for name, value in self._live.items()}
        sets = {name: encoded for name, encoded in changed.items() if encoded is not None}
        return sets, {name for name in self._deleted if name in self._stored}

    def _saved(self, sets: Mapping[str, bytes], stored: Mapping[str, bytes], dels: set[str]) -> None:
        """``sets``: the fields that were saved, encoded; ``stored``: sealed."""
        self._stored.update(stored)
        self._as_read.update({name: (self._codec, encoded) for name, encoded in sets.items()})
        for name in dels:
            self._stored.pop(name, None)
            self._as_read.pop(name, None)
        self._deleted.clear()
        self._rotation_grace_ms = None
        self._binding = False
        if self._new_idle_ms is not None:
            self._idle_ms, self._new_idle_ms = self._new_idle_ms, None
