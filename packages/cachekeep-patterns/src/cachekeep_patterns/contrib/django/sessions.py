"""A session engine for Django.

    SESSION_ENGINE = "cachekeep_patterns.contrib.django.sessions"
    CACHEKEEP_SESSIONS = {"LOCATION": "valkey://127.0.0.1:6379/0"}

Beside LOCATION: CLUSTER (bool), OPTIONS (to the valkey-py client), and any field of `Policy` in capitals, such as
MAX_BYTES or MAX_AGE_SECONDS. The idle time is Django's own (SESSION_COOKIE_AGE, `set_expiry`), and as in Django an
expiry moves when a session is saved. Ids are signed with SECRET_KEY; SECRET_KEY_FALLBACKS are accepted.

Two requests that change different keys both keep their changes. A request that outlives its session, or the id it
came with, gets Django's own answer: UpdateError, which the middleware turns into a 400.
"""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted

from ...sessions import AsyncSessionStore, Policy, Saved, Session, Signer
from ...sessions import SessionStore as Store
from .clients import Clients

USER_KEY = "_auth_user_id"
"""Where django.contrib.auth keeps the logged-in user; it is what `logout_everywhere` goes by."""


@functools.cache
def _clients() -> Clients:
    wanted = settings.CACHEKEEP_SESSIONS
    return Clients(wanted["LOCATION"], cluster=wanted.get("CLUSTER", False), options=wanted.get("OPTIONS", {}))


@functools.cache
def _policy() -> Policy:
    wanted: dict[str, Any] = settings.CACHEKEEP_SESSIONS
    names = {field.name for field in fields(Policy)}
    given = {key.lower(): value for key, value in wanted.items() if key.lower() in names}
    # The middleware sets the cookie of the id that a request came with: an id that has been replaced must not
    # go out again, so a late request is refused (as Django's own engines do), not merged.
    return Policy(**{"max_age_seconds": None, "in_flight_seconds": 0, **given})


def _signer() -> Signer:
    return Signer([settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS], settings.SESSION_COOKIE_NAME)


def store() -> Store:
    """The sync store behind the engine, for `logout_everywhere(str(user.pk))`, `sessions_of` and `end`."""
    return Store(_clients().sync(), _policy())


def async_store() -> AsyncSessionStore:
    """The same for the running event loop."""
    return AsyncSessionStore(_clients().for_loop(), _policy())


class SessionStore(SessionBase):
    """One request's session. `session_key` is the signed id."""

    if TYPE_CHECKING:

        def _get_session(self, no_load: bool = False) -> dict[str, Any]: ...
        async def _aget_session(self, no_load: bool = False) -> dict[str, Any]: ...

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._record = Session()

    # Sync

    def load(self) -> dict[str, Any]:
        store().load(_unsigned(self.session_key), into=self._record, slide=False)
        return self._loaded()

    def exists(self, session_key: str | None) -> bool:
        return not store().load(_unsigned(session_key), slide=False).new

    def create(self) -> None:
        self._record = Session()
        self._fill(self._get_session(no_load=True))
        self._after(store().save(self._record, extend=True))
        self.modified = True

    def save(self, must_create: bool = False) -> None:
        if must_create or self.session_key is None:
            self.create()
            return
        data = self._get_session()
        if self._record.new:
            store().load(_unsigned(self.session_key), into=self._record, slide=False)
        if self._record.new:
            raise UpdateError
        if self.get_expiry_age() <= 0:
            self.delete()
            return
        self._fill(data)
        self._after(store().save(self._record, extend=True))

    def delete(self, session_key: str | None = None) -> None:
        store().delete(_unsigned(session_key or self.session_key))

    def cycle_key(self) -> None:
        data = self._get_session()
        try:
            if self.session_key is None:
                self.create()
            else:
                self._record.rotate()
                self.save()
        except UpdateError:
            self._refuse_to_revive(data)
            self.create()
        self.modified = True

    @classmethod
    def clear_expired(cls) -> None:
        """Nothing to do: the cache expires them."""

    # Async

    async def aload(self) -> dict[str, Any]:
        await async_store().load(_unsigned(self.session_key), into=self._record, slide=False)
        return self._loaded()

    async def aexists(self, session_key: str | None) -> bool:
        return not (await async_store().load(_unsigned(session_key), slide=False)).new

    async def acreate(self) -> None:
        self._record = Session()
        self._fill(await self._aget_session(no_load=True))
        self._after(await async_store().save(self._record, extend=True))
        self.modified = True

    async def asave(self, must_create: bool = False) -> None:
        if must_create or self.session_key is None:
            await self.acreate()
            return
        data = await self._aget_session()
        if self._record.new:
            await async_store().load(_unsigned(self.session_key), into=self._record, slide=False)
        if self._record.new:
            raise UpdateError
        if self.get_expiry_age() <= 0:
            await self.adelete()
            return
        self._fill(data)
        self._after(await async_store().save(self._record, extend=True))

    async def adelete(self, session_key: str | None = None) -> None:
        await async_store().delete(_unsigned(session_key or self.session_key))

    async def acycle_key(self) -> None:
        data = await self._aget_session()
        try:
            if self.session_key is None:
                await self.acreate()
            else:
                self._record.rotate()
                await self.asave()
        except UpdateError:
            self._refuse_to_revive(data)
            await self.acreate()
        self.modified = True

    @classmethod
    async def aclear_expired(cls) -> None:
        """Nothing to do: the cache expires them."""

    # Both

    def _loaded(self) -> dict[str, Any]:
        if self._record.new:
            self._session_key = None
            return {}
        return dict(self._record)

    def _fill(self, data: dict[str, Any]) -> None:
        self._record.assign(data)
        self._record.expire_after(max(self.get_expiry_age(), 0.001))
        user = data.get(USER_KEY)
        if user is not None and self._record.user != user:
            if self._record.user is not None:
                self._record.clear()
                self._record.assign(data)
            self._record.bind(user)

    def _after(self, outcome: Saved) -> None:
        if outcome is Saved.GONE:
            raise UpdateError
        assert self._record.id is not None
        self._session_key = _signer().sign(self._record.id)

    def _refuse_to_revive(self, data: dict[str, Any]) -> None:
        """An anonymous session that vanished may go on under a new key; one that was logged out may not."""
        if USER_KEY in data:
            raise SessionInterrupted("The session was ended by a concurrent request.")


def _unsigned(session_key: str | None) -> str | None:
    verified = _signer().verify(session_key) if session_key else None
    return None if verified is None else verified[0]
