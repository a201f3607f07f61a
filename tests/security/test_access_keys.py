"""Keys that are issued: known by the installation that made them, also after a restart, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachekeep.errors import Unusable
from cachekeep.security import access_keys
from cachekeep.security.access_keys import FILE, Issuer

ACCOUNT = "000000000000"


def test_a_key_is_known_after_a_restart(tmp_path: Path) -> None:
    access_key, secret = access_keys.load_or_make(tmp_path, ACCOUNT).issue()
    assert (len(access_key), len(secret)) == (20, 40)
    found = access_keys.load_or_make(tmp_path, ACCOUNT).known(access_key)
    assert found is not None
    assert (found.secret_key, found.arn) == (secret, "")
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_key_is_known_nowhere_else(tmp_path: Path) -> None:
    here = access_keys.load_or_make(tmp_path, ACCOUNT)
    access_key, _ = here.issue()
    (tmp_path / FILE).unlink()
    assert access_keys.load_or_make(tmp_path, ACCOUNT).known(access_key) is None
    assert access_keys.load_or_make(tmp_path, "111111111111").known(access_key) is None
    for other in (access_key[:-1] + ("A" if access_key[-1] != "A" else "B"), access_key.lower(), access_key + "A", "", "AKIA"):
        assert here.known(other) is None


def test_no_two_keys_are_alike() -> None:
    issued = {Issuer(b"x", ACCOUNT).issue() for _ in range(100)}
    assert len({key for key, _ in issued}) == len({secret for _, secret in issued}) == 100


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"0" * 63])
def test_a_damaged_file_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    """An empty one would let anybody make keys."""
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(Unusable, match="is damaged"):
        access_keys.load_or_make(tmp_path, ACCOUNT)
    assert (tmp_path / FILE).read_bytes() == content
