"""The primary is killed in the middle; the endpoint's address moves to the replica; the requests go on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import valkey
from tests.addresses import free_port, new_address

from cachekeep_patterns.sessions import Policy, Retry, Saved, SessionStore
from patterns_rig.session_engines import ENGINES, Engine, wait_for

ENDPOINT, FIRST, SECOND = new_address(), new_address(), new_address()


@pytest.mark.parametrize("program", ENGINES)
def test_a_failover_loses_no_acknowledged_write_that_the_cache_kept(program: str, start_engine: Callable[..., Engine]) -> None:
    port = free_port(ENDPOINT)
    primary = start_engine(
        program, "--bind", FIRST, ENDPOINT, "--repl-diskless-sync-delay", "0", address=FIRST, port=port
    )  # fmt: skip
    replica = start_engine(
        program, "--bind", SECOND, "--replicaof", FIRST, str(port),
        address=SECOND, port=port,
    )  # fmt: skip
    wait_for(
        lambda: primary.client().info("replication").get("slave0", {}).get("state") == "online",
        "the replica in sync",
    )

    store = SessionStore(
        valkey.Valkey(ENDPOINT, port, socket_timeout=1, socket_connect_timeout=1),
        Policy(),
        Retry(deadline_seconds=20),
    )
    session = store.load(None)
    session.login("ada")
    store.save(session)
    ids = [session.id]
    writers = 4
    acknowledged: list[list[int]] = [[] for _ in range(writers)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        number = 0
        try:
            while not stop.is_set():
                request = store.load(ids[-1])
                assert not request.new, "the session was lost"
                request[f"w{writer}-{number}"] = number
                assert store.save(request) is Saved.SAVED
                acknowledged[writer].append(number)
                number += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    wait_for(lambda: failures or all(len(done) > 20 for done in acknowledged), "writes before the failover")

    # Let what is acknowledged reach the replica, so that "the cache kept it" is everything up to here.
    assert primary.client().wait(1, 10_000) == 1
    kept = [list(done) for done in acknowledged]
    offset = primary.client().info("replication")["master_repl_offset"]
    wait_for(lambda: replica.client().info("replication")["slave_repl_offset"] >= offset, "the replica's catching up")
    primary.kill()
    replica.client().replicaof("NO", "ONE")
    survived = {name[1:].decode() for name in replica.client().hkeys(store.policy.record_key(session.handle or ""))}
    replica.client().config_set("bind", f"{SECOND} {ENDPOINT}")

    at_failover = [len(done) for done in acknowledged]
    wait_for(
        lambda: failures or all(len(d) > b + 20 for d, b in zip(acknowledged, at_failover, strict=True)),
        "writes after the failover",
    )
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures

    final = store.load(session.id)
    for writer in range(writers):
        held = {number for number in acknowledged[writer] if f"w{writer}-{number}" in final}
        assert set(kept[writer]) <= held
        assert {n for n in acknowledged[writer] if f"w{writer}-{n}" in survived} <= held
        # What was acknowledged after the promotion is there, too.
        assert set(acknowledged[writer][at_failover[writer] + 1 :]) <= held
    assert final.user == "ada"
    assert store.logout_everywhere("ada") == 1
    assert store.load(session.id).new


@pytest.mark.parametrize("program", ENGINES)
def test_a_save_whose_reply_was_lost_is_not_done_twice(program: str, start_engine: Callable[..., Engine]) -> None:
    """A real lost reply: the connection is cut after the engine has executed the save."""
    engine = start_engine(program)
    store = SessionStore(engine.client())
    session = store.load(None)
    session["n"] = 0
    store.save(session)
    session_id = session.id

    slow = store.load(session_id)
    slow["n"] = 1
    cut = threading.Event()

    class Cutting(valkey.Valkey):
        def execute_command(self, *args: object, **options: object) -> object:
            reply = super().execute_command(*args, **options)
            if not cut.is_set() and args[0] in ("EVALSHA", "EVAL"):
                cut.set()
                store.update(session_id, lambda other: other.update(n=other["n"] + 10))
                raise valkey.exceptions.ConnectionError("reply lost")
            return reply

    SessionStore(Cutting(engine.address, engine.port)).save(slow)
    assert cut.is_set()
    assert store.load(session_id)["n"] == 11
