"""What the store promises, each against a real engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import valkey

from cachekeep_patterns.sessions import (
    JSON,
    Policy,
    Retry,
    Saved,
    SessionCannotDecode,
    SessionCannotEncode,
    SessionConflict,
    SessionError,
    SessionId,
    SessionStore,
    SessionTooLarge,
    SessionUnavailable,
    encrypted,
    operations,
    scripts,
)
from patterns_rig.session_engines import Engine, wait_for

Make = Callable[..., SessionStore]


def begin(store: SessionStore, **fields: Any) -> str:
    session = store.load(None)
    session.update(fields)
    assert store.save(session) is Saved.SAVED
    assert session.id is not None
    return session.id


def record(store: SessionStore, session_id: str) -> str:
    return store.policy.record_key(session_id[:22])


def test_what_was_saved_is_loaded(store: SessionStore) -> None:
    when = datetime(2024, 2, 29, 12, tzinfo=UTC)
    fields = {"n": 1, "s": "ü", "b": b"\x00\xff", "l": [1, [2]], "d": {"k": None}, "t": when, "": True, ":x": 1.5}
    loaded = store.load(begin(store, **fields))
    assert dict(loaded) == fields
    assert not loaded.modified
    assert loaded.created_seconds is not None


def test_an_untouched_new_session_makes_no_record(store: SessionStore, client: valkey.Valkey) -> None:
    session = store.load(None)
    assert store.save(session) is Saved.UNCHANGED
    assert client.dbsize() == 0


def test_an_unchanged_session_is_not_written(store: SessionStore, client: valkey.Valkey) -> None:
    session = store.load(begin(store, a=[1], b=2))
    assert session["a"] == [1]
    session["b"] = 2
    calls = client.info("stats")["total_commands_processed"]
    assert store.save(session) is Saved.UNCHANGED
    assert client.info("stats")["total_commands_processed"] == calls + 1  # INFO itself


def test_a_change_inside_a_value_is_noticed(store: SessionStore) -> None:
    session_id = begin(store, cart=[1], other={"a": 1})
    session = store.load(session_id)
    session["cart"].append(2)
    assert session.modified
    assert store.save(session) is Saved.SAVED
    assert dict(store.load(session_id)) == {"cart": [1, 2], "other": {"a": 1}}


def test_two_requests_changing_different_fields_both_survive(store: SessionStore) -> None:
    session_id = begin(store, a=0, b=0, gone=1)
    one, two = store.load(session_id), store.load(session_id)
    one["a"] = 1
    del one["gone"]
    two["b"] = 2
    two["new"] = 3
    assert store.save(one) is store.save(two) is Saved.SAVED
    assert dict(store.load(session_id)) == {"a": 1, "b": 2, "new": 3}


def test_the_same_field_is_what_the_last_save_made_it(store: SessionStore) -> None:
    session_id = begin(store, a=0)
    one, two, three = (store.load(session_id) for _ in range(3))
    one["a"], two["a"] = 1, 2
    del three["a"]
    store.save(two)
    store.save(one)
    assert store.load(session_id)["a"] == 1
    store.save(three)
    assert "a" not in store.load(session_id)


def test_twenty_threads_lose_nothing(store: SessionStore) -> None:
    session_id = begin(store, start=True)
    together = threading.Barrier(20)

    def request(number: int) -> None:
        session = store.load(session_id)
        together.wait()
        session[f"field{number}"] = number
        store.save(session)

    threads = [threading.Thread(target=request, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(store.load(session_id)) == {"start": True, **{f"field{n}": n for n in range(20)}}


def test_update_counts_exactly_with_twenty_threads(store: SessionStore) -> None:
    session_id = begin(store, n=0)

    def increment(session: Any) -> None:
        session["n"] += 1

    def count() -> None:
        for _ in range(5):
            store.update(session_id, increment, attempts=1000)

    threads = [threading.Thread(target=count) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load(session_id)["n"] == 100


def test_update_of_no_session_says_so(store: SessionStore) -> None:
    with pytest.raises(SessionError, match="no such session"):
        store.update(str(SessionId.new()), lambda session: None)


def test_compare_and_set_refuses_the_second_save_whole(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, conflict="compare")
    session_id = begin(store, a=0, b=0)
    one, two = store.load(session_id), store.load(session_id)
    one["a"], two["b"] = 1, 2
    store.save(one)
    with pytest.raises(SessionConflict):
        store.save(two)
    assert dict(store.load(session_id)) == {"a": 1, "b": 0}
    one["a"] = 3
    assert store.save(one) is Saved.SAVED  # its own earlier save is no conflict


# Ids


@pytest.mark.parametrize("planted", ["x", "a" * 44, "../../etc", "*" * 44])
def test_an_id_we_did_not_make_is_never_adopted(store: SessionStore, planted: str) -> None:
    session = store.load(planted)
    assert session.new
    session["a"] = 1
    store.save(session)
    assert session.id != planted
    assert store.load(planted).new


def test_the_cache_holds_no_usable_id(store: SessionStore, client: valkey.Valkey) -> None:
    session_id = begin(store, a=1)
    session = store.load(session_id)
    session.login("ada")
    store.save(session)
    held = b"".join(key + b"".join(part for pair in client.hgetall(key).items() for part in pair) for key in client.keys("*"))
    assert session.id is not None
    assert session_id[22:].encode() not in held
    assert session.id[22:].encode() not in held


def test_login_gives_a_new_id_and_the_old_one_is_dead_at_once(store: SessionStore) -> None:
    before = begin(store, cart=[1])
    session = store.load(before)
    session.login("ada")
    assert store.save(session) is Saved.SAVED
    assert session.id != before
    old = store.load(before)
    assert old.new
    assert old.superseded
    assert dict(old) == {}
    new = store.load(session.id)
    assert (new.user, new["cart"]) == ("ada", [1])


def test_a_replaced_id_can_neither_write_nor_end_nor_begin_anything(
    store: SessionStore, client: valkey.Valkey, eager: Make
) -> None:
    strict = eager(client, in_flight_seconds=0)
    before = begin(store, a=1)
    session = strict.load(before)
    session.rotate()
    strict.save(session)
    old = store.load(before)
    old["a"] = 2
    assert store.save(old) is Saved.GONE
    assert old.id is None
    assert store.delete(before) is False
    assert store.load(session.id)["a"] == 1
    assert client.dbsize() == 1


def test_requests_in_flight_at_a_login_keep_their_changes(store: SessionStore) -> None:
    before = begin(store, a=0)
    slow, login = store.load(before), store.load(before)
    login.login("ada")
    store.save(login)
    slow["cart"] = [7]
    assert store.save(slow) is Saved.SAVED
    assert slow.id == before  # and its response will not bring the old cookie back
    assert dict(store.load(login.id)) == {"a": 0, "cart": [7]}


def test_without_an_in_flight_time_they_do_not(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, in_flight_seconds=0)
    before = begin(store, a=0)
    slow, login = store.load(before), store.load(before)
    login.login("ada")
    store.save(login)
    slow["cart"] = [7]
    assert store.save(slow) is Saved.GONE
    assert slow.lost
    assert dict(store.load(login.id)) == {"a": 0}


def test_a_request_in_flight_cannot_log_somebody_else_in(store: SessionStore) -> None:
    before = begin(store, a=0)
    attacker, victim = store.load(before), store.load(before)
    victim.login("victim")
    store.save(victim)
    assert attacker["a"] == 0
    attacker["planted"] = 1
    attacker.login("attacker")
    assert store.save(attacker) is Saved.SAVED
    assert attacker.id is not None
    assert attacker.id[:22] != before[:22]  # a session of its own, with its own changes only
    assert store.save(attacker) is Saved.UNCHANGED
    assert dict(attacker) == {"planted": 1}
    assert dict(store.load(attacker.id)) == {"planted": 1}
    assert store.load(victim.id).user == "victim"
    assert dict(store.load(victim.id)) == {"a": 0}


def test_a_rotation_with_grace_lets_the_old_id_read(store: SessionStore) -> None:
    before = begin(store, a=1)
    session = store.load(before)
    session.rotate(grace_seconds=30)
    store.save(session)
    old = store.load(before)
    assert old["a"] == 1
    old.rotate()
    assert store.save(old) is Saved.GONE  # only the current id may rotate again
    assert store.load(session.id)["a"] == 1


def test_a_wrong_token_opens_nothing_even_after_a_rotation(store: SessionStore) -> None:
    session = store.load(begin(store, a=1))
    for _ in range(2):
        guess = str(SessionId(session.handle or "", SessionId.new().token))
        loaded = store.load(guess)
        assert loaded.new
        assert not loaded.superseded
        assert store.delete(guess) is False
        session.rotate(grace_seconds=60)
        store.save(session)


def test_a_login_as_somebody_else_takes_nothing_along(store: SessionStore, client: valkey.Valkey) -> None:
    session = store.load(begin(store, a=1))
    session.login("ada")
    store.save(session)
    adas = session.id
    session["secret"] = 2
    session.login("bob")
    session["b"] = 1
    store.save(session)
    assert store.load(adas).new
    loaded = store.load(session.id)
    assert (loaded.user, dict(loaded)) == ("bob", {"b": 1})
    assert store.sessions_of("ada") == []


# The end


def test_a_login_of_nobody_is_refused_and_changes_nothing(store: SessionStore) -> None:
    session = store.load(None)
    session["cart"] = ["tea"]
    session.login("ada")
    for login in (session.login, session.bind):
        with pytest.raises(ValueError, match="nobody"):
            login("")
    assert (session.user, session["cart"]) == ("ada", ["tea"])


def test_a_late_save_does_not_revive_a_logged_out_session(store: SessionStore, client: valkey.Valkey) -> None:
    session_id = begin(store, a=1)
    late, leaving = store.load(session_id), store.load(session_id)
    leaving.logout()
    assert store.save(leaving) is Saved.ENDED
    assert leaving.ended
    late["a"] = 2
    assert store.save(late) is Saved.GONE
    assert late.lost
    assert store.load(session_id).new
    assert client.dbsize() == 0


def test_what_is_set_after_a_logout_begins_a_new_session(store: SessionStore) -> None:
    before = begin(store, a=1)
    session = store.load(before)
    session.clear()
    session["note"] = "bye"
    assert store.save(session) is Saved.SAVED
    assert session.id is not None
    assert session.id[:22] != before[:22]
    assert not session.ended
    assert dict(store.load(session.id)) == {"note": "bye"}
    assert store.load(before).new


def test_logout_everywhere(store: SessionStore, client: valkey.Valkey) -> None:
    ids = []
    for user in ("ada", "ada", "ada", "bob"):
        session = store.load(None)
        session.login(user)
        session["of"] = user
        store.save(session)
        ids.append(session.id)
    late = store.load(ids[0])
    assert len(store.sessions_of("ada")) == 3
    assert store.logout_everywhere("ada") == 3
    late["a"] = 1
    assert store.save(late) is Saved.GONE
    assert [store.load(each).new for each in ids] == [True, True, True, False]
    assert store.sessions_of("ada") == []
    assert store.logout_everywhere("ada") == 0


def test_logout_everywhere_ends_sessions_that_the_roster_forgot(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, sessions_per_user=2)
    ids = []
    for _ in range(5):
        session = store.load(None)
        session.login("ada")
        store.save(session)
        ids.append(session.id)
    assert len(store.sessions_of("ada")) == 2
    assert not any(store.load(each).new for each in ids)
    assert store.logout_everywhere("ada") == 2
    assert all(store.load(each).new for each in ids)


def test_a_save_of_a_session_that_the_roster_forgot_does_not_survive_either(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, sessions_per_user=1)
    forgotten = store.load(None)
    forgotten.login("ada")
    store.save(forgotten)
    other = store.load(None)
    other.login("ada")
    store.save(other)
    late = store.load(forgotten.id)
    store.logout_everywhere("ada")
    assert client.exists(record(store, late.id or ""))
    late["a"] = 1
    assert store.save(late) is Saved.GONE
    assert not client.exists(record(store, late.id or ""))


def test_logout_everywhere_else(store: SessionStore) -> None:
    sessions = []
    for _ in range(3):
        session = store.load(None)
        session.login("ada")
        session["n"] = 1
        store.save(session)
        sessions.append(session)
    kept = store.load(sessions[1].id)
    for _ in range(2):
        store.logout_everywhere("ada", keep=kept)
        assert [store.load(each.id).new for each in sessions] == [True, False, True]
        assert [seen.handle for seen in store.sessions_of("ada")] == [kept.handle]
    kept["n"] = 2
    assert store.save(kept) is Saved.SAVED
    store.logout_everywhere("ada")
    assert store.load(kept.id).new


def test_only_a_session_of_the_user_can_be_kept(store: SessionStore) -> None:
    session = store.load(None)
    session.login("bob")
    store.save(session)
    for keep in (session, store.load(None)):
        with pytest.raises(SessionError):
            store.logout_everywhere("ada", keep=keep)


def test_one_device_can_be_logged_out(store: SessionStore) -> None:
    sessions = []
    for _ in range(2):
        session = store.load(None)
        session.login("ada")
        store.save(session)
        sessions.append(session)
    handle = sessions[0].handle
    assert handle is not None
    assert store.end("bob", handle) is False
    assert store.end("ada", handle) is True
    assert [store.load(each.id).new for each in sessions] == [True, False]


def test_losing_the_users_key_ends_the_sessions(store: SessionStore, client: valkey.Valkey) -> None:
    session = store.load(None)
    session.login("ada")
    store.save(session)
    client.delete(store.policy.user_key("ada"))
    assert store.load(session.id).new


# Time


def test_reading_slides_the_expiry_and_saving_too(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, idle_seconds=1000)
    session_id = begin(store, a=1)
    key = record(store, session_id)
    client.pexpire(key, 500_000)
    store.load(session_id, slide=False)
    assert client.pttl(key) <= 500_000
    session = store.load(session_id)
    assert 990_000 < client.pttl(key) <= 1_000_000
    client.pexpire(key, 500_000)
    session["a"] = 2
    store.save(session)
    assert 990_000 < client.pttl(key) <= 1_000_000
    client.pexpire(key, 500_000)
    assert store.touch(session) is True
    assert client.pttl(key) > 990_000
    store.delete(session_id)
    assert store.touch(session) is False


def test_a_read_soon_after_a_read_writes_nothing(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, idle_seconds=1000)
    session_id = begin(store, a=1)
    client.pexpire(record(store, session_id), 980_000)
    store.load(session_id)
    assert client.pttl(record(store, session_id)) <= 980_000


def test_a_session_ends_at_its_maximum_age_whatever_its_use(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, idle_seconds=1000, max_age_seconds=100)
    session_id = begin(store, a=1)
    key = record(store, session_id)
    assert client.pttl(key) <= 100_000
    store.load(session_id)
    assert client.pttl(key) <= 100_000
    seconds, _ = client.time()
    client.hset(key, "a", seconds * 1000 - 1)
    client.persist(key)
    late = store.load(session_id)
    assert late.new
    assert client.exists(key) == 0


def test_the_maximum_age_counts_from_the_login_and_nothing_else_renews_it(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, idle_seconds=1000, max_age_seconds=100)
    session = store.load(begin(store, a=1))
    key = record(store, session.id or "")

    def age() -> None:
        seconds, _ = client.time()
        client.hset(key, "a", (seconds + 50) * 1000)

    age()
    session.login("ada")
    store.save(session)
    assert client.pttl(key) > 90_000
    age()
    session = store.load(session.id)
    session.rotate()
    store.save(session)
    store.logout_everywhere("ada", keep=session)
    session["a"] = 2
    store.save(session)
    assert client.pttl(key) <= 51_000


def test_an_idle_session_is_over(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, idle_seconds=0.05)
    session_id = begin(store, a=1)
    wait_for(lambda: store.load(session_id, slide=False).new, "the session's end")


def test_a_session_may_have_its_own_idle_time(store: SessionStore, client: valkey.Valkey) -> None:
    session_id = begin(store, a=1)
    session = store.load(session_id)
    session.expire_after(50)
    assert store.save(session) is Saved.SAVED
    assert client.pttl(record(store, session_id)) <= 50_000
    store.load(session_id)["a"] = 2
    assert client.pttl(record(store, session_id)) <= 50_000


def test_the_users_key_outlives_the_sessions(store: SessionStore, client: valkey.Valkey) -> None:
    session = store.load(None)
    session.login("ada")
    session.expire_after(10 * 24 * 3600)
    store.save(session)
    key = store.policy.user_key("ada")
    assert client.pttl(key) > client.pttl(record(store, session.id or ""))
    client.pexpire(key, 60_000)
    store.load(session.id)
    assert client.pttl(key) > client.pttl(record(store, session.id or ""))


# Size


def test_too_large_a_save_is_refused_whole(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, max_bytes=1000)
    session_id = begin(store, a="x" * 500)
    session = store.load(session_id)
    session["a"], session["b"] = "y", "z" * 2000
    with pytest.raises(SessionTooLarge) as refused:
        store.save(session)
    assert refused.value.size_bytes > refused.value.limit_bytes == 1000
    assert dict(store.load(session_id)) == {"a": "x" * 500}
    new = store.load(None)
    new["b"] = "z" * 2000
    with pytest.raises(SessionTooLarge):
        store.save(new)
    assert client.dbsize() == 1


def test_concurrent_saves_do_not_outgrow_the_limit_together(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, max_bytes=1000)
    session_id = begin(store, a=1)
    one, two = store.load(session_id), store.load(session_id)
    one["b"], two["c"] = "x" * 600, "x" * 600
    store.save(one)
    with pytest.raises(SessionTooLarge):
        store.save(two)


def test_the_size_is_kept_exactly_and_a_shrinking_save_is_always_taken(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client)
    session_id = begin(store, a="x" * 900, b=[1, 2])
    session = store.load(session_id)
    session["c"] = "long"
    store.save(session)
    session["c"] = 1
    del session["b"]
    store.save(session)
    held = client.hgetall(record(store, session_id))
    size = sum(len(name) - 1 + len(value) for name, value in held.items() if name[:1] == b":")
    assert int(held[b"n"]) == size
    small = eager(client, max_bytes=100)
    session = small.load(session_id)
    session["a"] = "x" * 500
    assert small.save(session) is Saved.SAVED


# Codecs


def test_a_change_of_codec_logs_nobody_out(client: valkey.Valkey, eager: Make) -> None:
    session_id = begin(eager(client), a=[1], b=b"x")
    store = eager(client, codec=JSON)
    session = store.load(session_id)
    assert dict(session) == {"a": [1], "b": b"x"}
    session["a"] = [2]
    store.save(session)
    assert client.hget(record(store, session_id), ":a") == b"j[2]"
    assert eager(client).load(session_id)["a"] == [2]


def test_a_change_of_codec_rewrites_only_what_was_written(client: valkey.Valkey, eager: Make) -> None:
    session_id = begin(eager(client), read=b"x", written=[1], untouched=1)
    store = eager(client, codec=JSON)
    session = store.load(session_id)
    assert (session["read"], session["written"]) == (b"x", [1])
    assert not session.modified
    other = eager(client).load(session_id)
    other["read"] = b"changed by another request"
    eager(client).save(other)
    session["written"].append(2)
    store.save(session)
    assert dict(store.load(session_id)) == {"read": b"changed by another request", "written": [1, 2], "untouched": 1}
    again = store.load(session_id)
    again["read"] = b"changed by another request"  # set to what it is
    assert store.save(again) is Saved.UNCHANGED


def test_a_codec_that_writes_differently_each_time(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, codec=encrypted({"one": bytes(32)}))
    session_id = begin(store, a=[1], b=2)
    session = store.load(session_id)
    assert dict(session) == {"a": [1], "b": 2}
    assert store.save(session) is Saved.UNCHANGED
    session["a"].append(2)
    store.save(session)
    assert store.load(session_id)["a"] == [1, 2]


def test_encrypted_fields_cannot_be_read_altered_or_moved(client: valkey.Valkey, eager: Make) -> None:
    pytest.importorskip("cryptography")
    plain, store = eager(client), eager(client, codec=encrypted({"two": b"2" * 32, "one": b"1" * 32}))
    ids = [begin(store, role="guest", admin="admin secret") for _ in range(2)]
    one, two = (record(store, session_id) for session_id in ids)
    assert b"secret" not in b"".join(client.hgetall(one).values())
    for field, value in (
        (":role", client.hget(one, ":admin")),  # another field of it
        (":role", client.hget(two, ":role")),  # the same field of another session
        (":role", b"m\xa5admin"),  # not encrypted at all
        (":role", client.hget(one, ":role")[:-1] + b"\0"),
    ):
        kept = client.hget(one, ":role")
        client.hset(one, field, value)
        with pytest.raises(SessionCannotDecode):
            store.load(ids[0])["role"]
        client.hset(one, ":role", kept)
    assert store.load(ids[0])["role"] == "guest"
    with pytest.raises(SessionCannotDecode):
        plain.load(ids[0])["role"]
    rotated = eager(client, codec=encrypted({"three": b"3" * 32, "two": b"2" * 32}))
    assert rotated.load(ids[0])["role"] == "guest"
    moving = eager(client, codec=encrypted({"two": b"2" * 32}, read_plain=True))
    assert moving.load(begin(plain, a=1))["a"] == 1


def test_what_cannot_be_stored_is_named_and_nothing_is_written(store: SessionStore, client: valkey.Valkey) -> None:
    session = store.load(None)
    session["fine"], session["bad"] = 1, object()
    with pytest.raises(SessionCannotEncode, match="'bad' holds a object"):
        store.save(session)
    assert client.dbsize() == 0


def test_pickle_is_not_read(store: SessionStore, client: valkey.Valkey) -> None:
    session_id = begin(store, a=1)
    client.hset(record(store, session_id), ":a", b"\x80\x04N.")
    with pytest.raises(SessionCannotDecode):
        store.load(session_id)["a"]


def test_names_are_text(store: SessionStore) -> None:
    with pytest.raises(TypeError):
        store.load(None)[1] = 2  # type: ignore[index]


def test_a_client_that_decodes_makes_no_difference(server: Engine) -> None:
    for protocol in (2, 3):
        store = SessionStore(server.client(decode_responses=True, protocol=protocol))
        assert store.load(begin(store, a=b"\xff"))["a"] == b"\xff"


# Trouble


def test_every_call_may_be_repeated(store: SessionStore, client: valkey.Valkey) -> None:
    """Each call is applied, its reply is thrown away, others act in between, and it is sent again."""
    session_id = begin(store, x=0)
    slow = store.load(session_id)
    slow["x"] = 1
    steps = operations.save(store.policy, slow)
    call = next(steps)
    store._send(call)
    store.update(session_id, lambda session: session.update(x=session["x"] + 10))
    with pytest.raises(StopIteration) as done:
        steps.send(store._send(call))
    assert done.value.value is Saved.SAVED
    assert store.load(session_id)["x"] == 11


def test_a_repeated_rotation_is_one_rotation(store: SessionStore) -> None:
    session = store.load(begin(store, x=0))
    session.rotate()
    steps = operations.save(store.policy, session)
    call = next(steps)
    store._send(call)
    with pytest.raises(StopIteration):
        steps.send(store._send(call))
    assert store.load(session.id)["x"] == 0


def test_a_repeated_compare_and_set_is_no_conflict(client: valkey.Valkey, eager: Make) -> None:
    store = eager(client, conflict="compare")
    session = store.load(begin(store, x=0))
    session["x"] = 1
    steps = operations.save(store.policy, session)
    call = next(steps)
    store._send(call)
    with pytest.raises(StopIteration) as done:
        steps.send(store._send(call))
    assert done.value.value is Saved.SAVED


def test_a_repeated_creation_does_not_outlive_a_logout_everywhere(store: SessionStore) -> None:
    session = store.load(None)
    session.login("ada")
    steps = operations.save(store.policy, session)
    admit = next(steps)
    create = steps.send(store._send(admit))
    store._send(create)
    store.logout_everywhere("ada")
    with pytest.raises(StopIteration):
        steps.send(store._send(create))
    assert store.load(session.id).new


def test_a_repeated_revocation_keeps_the_kept(store: SessionStore) -> None:
    session = store.load(None)
    session.login("ada")
    store.save(session)
    kept = store.load(session.id)
    steps = operations.logout_everywhere(store.policy, "ada", kept)
    call = next(steps)
    since = store.load(None)
    since.login("ada")
    while True:
        store._send(call)
        if call.script is scripts.REVOKE:
            store.save(since)
        try:
            call = steps.send(store._send(call))
        except StopIteration:
            break
    assert not store.load(session.id).new
    assert not store.load(since.id).new
    assert len(store.sessions_of("ada")) == 2


def test_scripts_come_back_after_a_flush(store: SessionStore, client: valkey.Valkey) -> None:
    session_id = begin(store, a=1)
    client.script_flush()
    assert store.load(session_id)["a"] == 1


def test_a_cache_that_stays_away_is_said_so(server: Engine) -> None:
    nowhere = valkey.Valkey("127.0.0.1", 1)
    store = SessionStore(nowhere, Policy(), Retry(deadline_seconds=0.05))
    with pytest.raises(SessionUnavailable):
        store.load(str(SessionId.new()))


def test_a_read_only_node_is_waited_out(server: Engine, client: valkey.Valkey, store: SessionStore) -> None:
    """What a demoted primary says, until it is primary again."""
    session_id = begin(store, a=1)
    session = store.load(session_id)
    session["a"] = 2
    client.replicaof("127.0.0.1", 1)
    threading.Timer(0.1, lambda: server.client().replicaof("NO", "ONE")).start()
    assert store.save(session) is Saved.SAVED
    assert store.load(session_id)["a"] == 2


def test_wrong_credentials_are_not_retried(server: Engine) -> None:
    client = server.client(username="nobody", password="wrong")
    with pytest.raises(valkey.exceptions.AuthenticationError):
        SessionStore(client, retry=Retry(deadline_seconds=60)).load(str(SessionId.new()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_seconds": 0},
        {"max_age_seconds": 0},
        {"max_bytes": 0},
        {"in_flight_seconds": -1},
        {"conflict": "last"},
        {"prefix": "a{b}"},
    ],
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Policy(**wrong)


def test_every_script_names_one_key() -> None:
    for script in scripts.ALL:
        assert "KEYS[1]" in script.text
        assert "KEYS[2]" not in script.text


# Async: the same operations through the other shell


async def test_the_async_store(async_store: Any) -> None:
    session = await async_store.load(None)
    session["a"] = 1
    session.login("ada")
    assert await async_store.save(session) is Saved.SAVED
    one, two = await async_store.load(session.id), await async_store.load(session.id)
    one["b"], two["c"] = 2, 3
    await async_store.save(one)
    await async_store.save(two)
    assert dict(await async_store.load(session.id)) == {"a": 1, "b": 2, "c": 3}
    await async_store.update(session.id, lambda session: session.update(a=session["a"] + 1))
    assert await async_store.touch(session)
    assert [seen.handle for seen in await async_store.sessions_of("ada")] == [session.handle]
    assert await async_store.end("ada", session.handle)
    assert (await async_store.load(session.id)).new
    assert await async_store.logout_everywhere("ada") == 0
    assert await async_store.delete(session.id) is False
