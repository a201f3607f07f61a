"""Sessions for Flask.

    app.session_interface = ServerSessions(SessionStore(client))

The cookie follows Flask's own settings (SESSION_COOKIE_NAME, _SECURE, _HTTPONLY, _SAMESITE, _DOMAIN, _PATH), signed
with SECRET_KEY and, for ids signed before a change of key, SECRET_KEY_FALLBACKS. The session is loaded at its first
use and saved when the response is made.

A `permanent` session lives, as its cookie does, for PERMANENT_SESSION_LIFETIME after its last use (or as long as the
policy lets one live at most); with SESSION_REFRESH_EACH_REQUEST the cookie is sent anew by each request that uses it.
Other sessions have a cookie that ends with the browser and the policy's idle time. `modified`, `new`, `accessed` and
`permanent` are Flask's; a change inside a value is seen without `modified = True`.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Request, Response
from flask.sessions import SessionInterface, SessionMixin

from ..sessions import Session, SessionStore, Signer

_LONGEST_SECONDS = 400 * 24 * 3600
"""Browsers cut a cookie's Max-Age at 400 days (RFC 6265bis)."""


class FlaskSession(Session, SessionMixin):
    """`flask.session`: with `login`, `logout` and `rotate` beside the mapping."""

    arrived_id: str | None = None
    cookie_is_current = True
    was_permanent = False
    accessed: bool
    new: bool
    _said_modified = False

    @property
    def modified(self) -> bool:
        return self._said_modified or self._has_changes()

    @modified.setter
    def modified(self, value: bool) -> None:
        self._said_modified = value


class ServerSessions(SessionInterface):
    """Keeps Flask's sessions in `store`. Without SECRET_KEY there is no session, as in Flask."""

    def __init__(self, store: SessionStore) -> None:
        self.store = store

    def open_session(self, app: Flask, request: Request) -> FlaskSession | None:
        signer = self._signer(app)
        if signer is None:
            return None
        session = FlaskSession()
        for candidate in request.cookies.getlist(self.get_cookie_name(app)):
            if (verified := signer.verify(candidate)) is not None:
                session.arrived_id, session.cookie_is_current = verified
                session.before_access = lambda: self._load(session)
                break
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        assert isinstance(session, FlaskSession)
        # As in Django: a request that failed saves nothing.
        if session.before_access is not None or not session.accessed or response.status_code >= 500:
            return
        response.vary.add("Cookie")
        lifetime_seconds = app.permanent_session_lifetime.total_seconds()
        if len(session) and (session.permanent or session.was_permanent):
            session.expire_after(max(lifetime_seconds, 0.001) if session.permanent else self.store.policy.idle_seconds)
        self.store.save(session)
        where: dict[str, Any] = {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "httponly": self.get_cookie_httponly(app),
            "samesite": self.get_cookie_samesite(app),
            "partitioned": self.get_cookie_partitioned(app),
        }
        name = self.get_cookie_name(app)
        unchanged = session.id == session.arrived_id and session.cookie_is_current and session.permanent == session.was_permanent
        refreshed = session.permanent and app.config["SESSION_REFRESH_EACH_REQUEST"]
        if session.ended:
            response.delete_cookie(name, **where)
        elif session.id is None or session.lost or (unchanged and not refreshed):
            return
        else:
            signer = self._signer(app)
            assert signer is not None
            longest_seconds = min(lifetime_seconds, self.store.policy.max_age_seconds or _LONGEST_SECONDS, _LONGEST_SECONDS)
            max_age = int(longest_seconds) if session.permanent else None
            response.set_cookie(name, signer.sign(session.id), max_age=max_age, **where)
        if "Cache-Control" not in response.headers:
            response.headers["Cache-Control"] = "no-store"

    def _load(self, session: FlaskSession) -> None:
        session.before_access = None
        self.store.load(session.arrived_id, into=session)
        session.was_permanent = session.permanent

    def _signer(self, app: Flask) -> Signer | None:
        if not app.secret_key:
            return None
        keys = [app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())]
        return Signer(keys, self.get_cookie_name(app), short_keys=True)
