"""Any interleaving of any requests: the store against a model that is a few dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from cachekeep_patterns.sessions import Policy, Saved, Session, SessionStore
from patterns_rig.session_engines import ENGINES, Engine

NAMES = st.sampled_from("abc")
VALUES = st.one_of(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=2))
USERS = st.sampled_from(["ada", "bob"])


@dataclass
class Record:
    current: str
    previous: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    user: str | None = None


@dataclass
class Request:
    """What a request saw, and what it means to do."""

    session: Session
    seen: dict[str, Any]
    view: dict[str, Any]
    base: str | None
    user: str | None
    login: bool = False
    rotate: bool = False
    ended: str | None = None


class Machine(RuleBasedStateMachine):
    store: SessionStore
    requests: Bundle[Request] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.store.client.flushall()
        self.records: dict[str, Record] = {}
        self.ids: list[str] = []

    def find(self, session_id: str | None, *, also_previous: bool) -> Record | None:
        record = self.records.get((session_id or "")[:22])
        if record is None or session_id not in (record.current, record.previous if also_previous else None):
            return None
        return record

    @rule(target=requests, which=st.integers(0, 5))
    def arrive(self, which: int) -> Request:
        session_id = self.ids[-1 - which] if which < len(self.ids) else None
        session = self.store.load(session_id)
        record = self.find(session_id, also_previous=False)
        assert session.new == (record is None)
        fields = copy.deepcopy(record.fields) if record else {}
        assert dict(session) == fields
        assert session.user == (record.user if record else None)
        return Request(session, fields, copy.deepcopy(fields), session.id, session.user)

    @rule(request=requests, name=NAMES, value=VALUES)
    def put(self, request: Request, name: str, value: Any) -> None:
        request.session[name] = copy.deepcopy(value)
        request.view[name] = value

    @rule(request=requests, name=NAMES)
    def remove(self, request: Request, name: str) -> None:
        assert request.session.pop(name, None) == request.view.pop(name, None)

    @rule(request=requests, name=NAMES)
    def grow(self, request: Request, name: str) -> None:
        if isinstance(request.view.get(name), list):
            request.session[name].append(9)
            request.view[name] = [*request.view[name], 9]

    @rule(request=requests, user=USERS)
    def login(self, request: Request, user: str) -> None:
        request.session.login(user)
        if request.user not in (None, user):
            self.forget(request)
        request.user, request.login, request.rotate = user, True, True

    @rule(request=requests)
    def rotate(self, request: Request) -> None:
        request.session.rotate()
        request.rotate = True

    @rule(request=requests)
    def logout(self, request: Request) -> None:
        request.session.logout()
        self.forget(request)

    def forget(self, request: Request) -> None:
        request.ended = request.base or request.ended
        request.seen, request.view, request.base = {}, {}, None
        request.user, request.login, request.rotate = None, False, False

    @rule(request=consumes(requests))
    def leave(self, request: Request) -> None:
        superseded = request.session.superseded
        outcome = self.store.save(request.session)
        sets = {n: v for n, v in request.view.items() if n not in request.seen or request.seen[n] != v}
        dels = request.seen.keys() - request.view.keys()
        if request.ended and self.find(request.ended, also_previous=True):
            del self.records[request.ended[:22]]
        if request.base is None:
            if request.login or (sets and not superseded):
                self.made(request, sets, outcome)
            else:
                assert outcome in (Saved.UNCHANGED, Saved.ENDED, Saved.GONE)
            return
        record = self.find(request.base, also_previous=not (request.rotate or request.login))
        if not (sets or dels or request.login or request.rotate):
            assert outcome in (Saved.UNCHANGED, Saved.ENDED)
        elif record is None:
            if request.login:
                self.made(request, sets, outcome)
            else:
                assert outcome is Saved.GONE
        else:
            assert outcome is Saved.SAVED
            record.fields.update(sets)
            for name in dels:
                record.fields.pop(name, None)
            if request.login:
                record.user = request.user
            if request.rotate:
                assert request.session.id not in (None, request.base)
                record.previous, record.current = request.base, request.session.id or ""
                self.ids.append(record.current)

    def made(self, request: Request, sets: dict[str, Any], outcome: Saved) -> None:
        assert outcome is Saved.SAVED
        made = request.session.id
        assert made is not None
        assert made not in self.ids
        self.records[made[:22]] = Record(made, None, dict(sets), request.user)
        self.ids.append(made)

    @rule(user=USERS)
    def logout_everywhere(self, user: str) -> None:
        self.store.logout_everywhere(user)
        self.records = {handle: record for handle, record in self.records.items() if record.user != user}

    @invariant()
    def every_id_reads_as_the_model_says(self) -> None:
        for session_id in self.ids:
            record = self.find(session_id, also_previous=False)
            session = self.store.load(session_id)
            assert dict(session) == (record.fields if record else {})
            assert session.user == (record.user if record else None)


@pytest.mark.skipif(not ENGINES, reason="needs an engine")
def test_the_store_is_the_model(start_engine: Callable[..., Engine]) -> None:
    with start_engine(ENGINES[0]).client() as client:
        store = SessionStore(client, Policy(in_flight_seconds=3600))

        class Here(Machine):
            pass

        Here.store = store
        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=200,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
