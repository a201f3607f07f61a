"""Server-side sessions in Flask.

    SESSION_CACHE=valkey://127.0.0.1:6379 flask --app examples.sessions_flask run

Then `curl -c jar -b jar -d item=tea localhost:5000/add`, `.../login`, `.../logout`, `.../`.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

import valkey
from flask import Flask, abort, request, session

from cachekeep_patterns.contrib.flask import ServerSessions
from cachekeep_patterns.sessions import SessionStore

client = valkey.Valkey.from_url(os.environ.get("SESSION_CACHE", "valkey://127.0.0.1:6379"), socket_timeout=1)
store = SessionStore(client)

app = Flask(__name__)
app.config.update(SECRET_KEY=os.environ.get("SESSION_KEY") or secrets.token_hex(32), SESSION_COOKIE_SAMESITE="Lax")
app.session_interface = ServerSessions(store)


@app.get("/")
def show() -> Any:
    return {"user": session.user, "cart": sorted(name[5:] for name in session if name.startswith("item:"))}


@app.post("/add")
def add() -> Any:
    session[f"item:{request.form['item']}"] = 1
    return show()


@app.post("/login")
def login() -> Any:
    session.login(request.form["user"] or abort(400, "user is empty"))  # a real application asks for a password
    return show()


@app.post("/logout")
def logout() -> Any:
    session.logout()
    return show()


@app.post("/logout-everywhere")
def logout_everywhere() -> Any:
    if session.user:
        store.logout_everywhere(session.user)
    session.logout()
    return show()
