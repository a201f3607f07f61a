"""Responses of Flask's views, cached.

    @app.get("/prices")
    @cached_response(cache, seconds=60, vary=["Accept-Language"], tags=["prices"])
    def prices(): …

The answer of a GET without Authorization is kept for everybody, unless it sets a cookie, is a stream or no 200, says `private` or
`no-store`, or the view used the session. One request makes it while others wait. It has an ETag; who sends it back gets a 304.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import flask
from flask.globals import request_ctx

from ..cache import Cache
from ..exact import Exact
from ..keys import canonical
from ..policy import Policy
from .responses import Kept, may_ask, seconds_to_keep, with_etag

View = TypeVar("View", bound=Callable[..., Any])
_POLICY = Policy(missing_seconds=0, jitter=0, lifetime=lambda packed: 0.0 if packed is None else packed[3])


def cached_response(cache: Cache, *, seconds: int, vary: Sequence[str] = (), tags: Sequence[str] = ()) -> Callable[[View], View]:
    """``vary``: the request's headers that the answer differs by (they are named in its Vary header)."""
    codec = Exact()

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def answer(*args: Any, **kwargs: Any) -> Any:
            request = flask.request
            if request.method != "GET" or not may_ask(list(request.headers)):
                return view(*args, **kwargs)
            own: flask.Response | None = None

            def load() -> list[object] | None:
                nonlocal own
                own = flask.make_response(view(*args, **kwargs))
                own.vary.update(vary)
                if "Cache-Control" not in own.headers:
                    own.headers["Cache-Control"] = f"public, max-age={seconds}"
                if own.is_streamed or _used_session() or not (kept := seconds_to_keep(own.status_code, list(own.headers), vary)):
                    return None
                body = own.get_data()
                return Kept(own.status_code, with_etag(list(own.headers), body), body, kept, time.time()).pack()

            told = [request.headers.get(name) for name in vary]
            key = f"page:{canonical((request.host_url, request.full_path, *told))}"
            packed: Any = cache.get(key, load, policy=_POLICY, codec=codec, tags=tags)
            if packed is None:
                return view(*args, **kwargs) if own is None else own  # another request's answer was for that one alone
            kept = Kept.unpack(packed)
            response = flask.Response(kept.body, kept.status, kept.headers)
            response.headers["Age"] = str(max(0, int(time.time() - kept.kept_at)))
            return response.make_conditional(request.environ)

        return cast(View, answer)

    return decorate


def _used_session() -> bool:
    context = cast(Any, request_ctx)._get_current_object()  # to ask it for its session would be a use of it
    session = vars(context).get("_session") or vars(context).get("session")
    return bool(session is not None and getattr(session, "accessed", True))
