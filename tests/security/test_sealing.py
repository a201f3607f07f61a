"""What is sealed opens by its own key, for its own owner and purpose, and by nothing else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.plan.builders import group

from cachekeep.engines.users import ADMIN, MOVER, REPLICA, hash_of, secret_of
from cachekeep.errors import Unsealable, Unusable
from cachekeep.model import Cache, Credential, Secret
from cachekeep.security.sealing import Sealing, load

KEY, OTHER = Sealing(bytes(32)), Sealing(b"\1" * 32)
WORD = Secret("correct horse battery staple")


def sealed(by: Sealing = KEY) -> str:
    return by.seal(WORD, owner="u1", purpose="password 1")


def with_credentials(*credentials: Credential, **decided: int) -> Cache:
    cache = group(2)
    wanted = replace(cache.wanted, credentials=credentials)
    return replace(cache, wanted=wanted, decided=replace(cache.decided, **decided))


def test_it_opens_for_its_owner_and_purpose_and_never_looks_the_same() -> None:
    one, other = sealed(), sealed()
    assert one != other
    for text in (one, other):
        assert WORD.value not in text
        assert KEY.open(text, owner="u1", purpose="password 1") == WORD
        for owner, purpose in (("u2", "password 1"), ("u1", "password 2")):
            with pytest.raises(Unsealable, match="another's was put in its place"):
                KEY.open(text, owner=owner, purpose=purpose)


@pytest.mark.parametrize("at", [-1, -20, 25])
def test_what_was_altered_does_not_open(at: int) -> None:
    text = sealed()
    letters = list(text)
    letters[at] = "A" if letters[at] != "A" else "B"
    with pytest.raises(Unsealable, match="damaged"):
        KEY.open("".join(letters), owner="u1", purpose="password 1")


def test_another_key_opens_nothing_and_the_error_names_both(tmp_path: Path) -> None:
    mine = Sealing(b"\1" * 32, path=tmp_path / "k")
    with pytest.raises(Unsealable) as told:
        mine.open(sealed(), owner="u1", purpose="password 1")
    for word in (KEY.id, mine.id, str(tmp_path / "k"), "nothing was changed", "--root-key"):
        assert word in str(told.value)
    assert WORD.value not in str(told.value)


def test_without_a_key_nothing_is_sealed_or_opened(tmp_path: Path) -> None:
    none = Sealing(None, path=tmp_path / "k")
    with pytest.raises(Unsealable, match="is not there"):
        none.seal(WORD, owner="u1", purpose="password 1")
    with pytest.raises(Unsealable, match="is not there"):
        none.open(sealed(), owner="u1", purpose="password 1")
    assert not (tmp_path / "k").exists(), "nothing is made in its place"


def test_what_a_newer_release_sealed_is_left_alone() -> None:
    with pytest.raises(Unsealable, match="newer"):
        KEY.open("v2" + sealed()[2:], owner="u1", purpose="password 1")


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "sealing.key"
    one, two = load(path, given=False), load(path, given=False)
    assert not path.exists(), "not before it is needed"
    one.make()
    two.make()
    assert one.id == two.id == load(path, given=False).id != ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert one.open(two.seal(WORD, owner="a", purpose="b"), owner="a", purpose="b") == WORD
    assert [p.name for p in tmp_path.iterdir()] == ["sealing.key"]


def test_a_key_that_was_given_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="nothing was made in its place"):
        load(tmp_path / "none", given=True)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_could_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text("ab" * 32)
    path.chmod(mode)
    with pytest.raises(Unusable, match="chmod 600"):
        load(path, given=True)


@pytest.mark.parametrize("content", [b"", b"ab" * 31, b"zz" * 32, b"\xff" * 32], ids=["none", "short", "other", "raw"])
def test_what_is_no_key_is_refused_and_left(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Unusable, match=r"no root key|cannot be read"):
        load(path, given=False)
    assert path.read_bytes() == content


def test_a_credential_holds_what_engines_check_by_and_nothing_that_opens() -> None:
    credential = KEY.credential("u1", 3, WORD)
    assert credential.serial == 3
    for user in (ADMIN, REPLICA, MOVER):
        assert credential.hash_of(user) == hash_of(secret_of(user, WORD))
    assert not any(secret_of(user, WORD) in repr(credential) for user in (ADMIN, REPLICA, MOVER))
    assert KEY.opens(credential)
    assert not OTHER.opens(credential)


def test_a_cache_is_spoken_to_by_the_credential_in_force() -> None:
    old, new = KEY.credential("u1", 1, WORD), KEY.credential("u1", 2, Secret("new"))
    assert KEY.password_of(with_credentials(old, new)) == WORD
    assert KEY.password_of(with_credentials(old, new, credential=2, other_credential=1)) == Secret("new")
    assert [c.serial for c in with_credentials(old, new, credential=2, other_credential=1).credentials] == [2, 1]
    with pytest.raises(Unsealable, match="demo cannot be looked after"):
        OTHER.password_of(with_credentials(old))


def test_one_caches_password_does_not_open_for_another() -> None:
    stolen = KEY.credential("u1", 1, WORD)
    other = replace(with_credentials(stolen), uid="u2")
    with pytest.raises(Unsealable):
        KEY.password_of(other)


def test_an_engine_without_users_has_no_password() -> None:
    assert OTHER.password_of(with_credentials()) == Secret("")
