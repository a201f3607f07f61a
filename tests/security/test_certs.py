"""Certificates are what was decided of them, hold against those who check them, and their keys are derived and nowhere stored."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace
from tests.plan.builders import group

from cachekeep.clock import SystemClock
from cachekeep.errors import Unsealable, Unusable
from cachekeep.model import Cache, Certificate
from cachekeep.security import certs
from cachekeep.security.sealing import Sealing

NOW = dt.datetime.now(dt.UTC)
KEY, OTHER = Sealing(bytes(32)), Sealing(b"\1" * 32)


def authorities(path: Path | None = None) -> certs.Authorities:
    made = certs.Authorities((), KEY, path)
    made.add(*certs.new_authority(NOW - dt.timedelta(days=30)))
    return made


def cache(of: certs.Authorities, *, serial: int = 1, days: int = 90, names: tuple[str, ...] = ("127.0.0.1", "demo")) -> Cache:
    certificate = Certificate(
        serial=serial,
        authority=of.ids[-1],
        trusted=of.ids,
        names=names,
        issued_at=NOW - dt.timedelta(days=9),
        expires_at=NOW + dt.timedelta(days=days),
    )
    made = group(2)
    return replace(made, decided=replace(made.decided, transit="required", certificate=certificate))


def shakes_hands(identity: str, trust: str, name: str, tmp_path: Path) -> str | None:
    """Whether a client of these authorities believes a server with this identity; else why not."""
    (tmp_path / "identity.pem").write_text(identity)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "identity.pem")
    client = ssl.create_default_context(cadata=trust)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        serving.join()
    return None


def test_who_believes_it(tmp_path: Path) -> None:
    of, another = authorities(), authorities()
    papers = of.papers_of(cache(of))
    assert papers is not None
    assert papers.authorities == of.pem()
    assert shakes_hands(papers.identity, of.pem(), "127.0.0.1", tmp_path) is None
    assert shakes_hands(papers.identity, of.pem(), "demo", tmp_path) is None
    assert "mismatch" in str(shakes_hands(papers.identity, of.pem(), "127.0.0.2", tmp_path))
    assert "local issuer" in str(shakes_hands(papers.identity, another.pem(), "127.0.0.1", tmp_path))
    ended = of.papers_of(cache(of, days=-1))
    assert ended is not None
    assert "expired" in str(shakes_hands(ended.identity, of.pem(), "127.0.0.1", tmp_path))


def test_its_key_is_the_cache_s_own_and_another_with_each_certificate() -> None:
    of = authorities()

    def key(of_cache: Cache) -> str:
        papers = of.papers_of(of_cache)
        assert papers is not None
        return papers.identity.partition("-----BEGIN CERT")[0]

    first = cache(of)
    assert key(first) == key(cache(of, names=("127.0.0.9",)))
    assert len({key(first), key(cache(of, serial=2)), key(replace(first, uid="u9"))}) == 3


def test_an_authority_is_kept_sealed_and_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / certs.FILE
    of = authorities(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE KEY" not in path.read_text()
    again = certs.load(path, KEY)
    again.make(SystemClock())
    assert again.ids == of.ids
    assert again.papers_of(cache(of)) is not None
    with pytest.raises(Unsealable):
        certs.load(path, OTHER).papers_of(cache(of))
    with pytest.raises(Unsealable, match="bring that file back"):
        certs.Authorities((), KEY, path).papers_of(cache(of))
    path.write_text("{")
    with pytest.raises(Unusable, match="cannot be read"):
        certs.load(path, KEY)


def test_one_that_is_given_issues(tmp_path: Path) -> None:
    """An intermediate one: clients trust the one above it alone."""
    root = trustme.CA(key_type=trustme.KeyType.RSA)
    middle = root.create_child_ca()
    (tmp_path / "ca.pem").write_bytes(middle.cert_pem.bytes())
    (tmp_path / "ca.key").write_bytes(middle.private_key_pem.bytes())
    of = authorities()
    of.add(*certs.given(tmp_path / "ca.pem", tmp_path / "ca.key", NOW))
    papers = of.papers_of(cache(of))
    assert papers is not None
    assert shakes_hands(papers.identity, root.cert_pem.bytes().decode(), "demo", tmp_path) is None


def test_what_cannot_be_an_authority_is_refused(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    leaf = ca.issue_cert("a.example")
    files = {
        "key of another": (ca.cert_pem.bytes(), other.private_key_pem.bytes(), "belongs to another"),
        "no authority": (leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes(), "no authority"),
        "not PEM": (b"x", ca.private_key_pem.bytes(), "no certificate authority can be had"),
    }
    for certificate, key, words in files.values():
        (tmp_path / "c").write_bytes(certificate)
        (tmp_path / "k").write_bytes(key)
        with pytest.raises(Unusable, match=words):
            certs.given(tmp_path / "c", tmp_path / "k", NOW)
    (tmp_path / "c").write_bytes(ca.cert_pem.bytes())
    (tmp_path / "k").write_bytes(ca.private_key_pem.bytes())
    with pytest.raises(Unusable, match="not valid now"):
        certs.given(tmp_path / "c", tmp_path / "k", NOW + dt.timedelta(days=365 * 2000))
    with pytest.raises(Unusable, match="Nothing was started"):
        certs.given(tmp_path / "none", tmp_path / "k", NOW)
    with pytest.raises(Unusable, match="give both"):
        certs.furnished(tmp_path / certs.FILE, KEY, tmp_path / "c", None, SystemClock())
    for _ in range(2):  # given again, it is the same one
        of = certs.furnished(tmp_path / certs.FILE, KEY, tmp_path / "c", tmp_path / "k", SystemClock())
        assert of.ids == (certs.id_of(ca.cert_pem.bytes().decode()),)
        assert (tmp_path / "ca.pem").read_text() == of.pem()


def test_an_authority_that_has_ended_issues_nothing() -> None:
    of = certs.Authorities((), KEY)
    of.add(*certs.new_authority(NOW - dt.timedelta(days=4000)))
    with pytest.raises(Unsealable, match="ended on"):
        of.papers_of(cache(of))


@pytest.mark.parametrize(("age_days", "warned"), [(30, False), (3600, True)])
def test_one_that_ends_soon_is_told_of(age_days: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certs.Authorities((), KEY, tmp_path / certs.FILE).add(*certs.new_authority(NOW - dt.timedelta(days=age_days)))
    certs.furnished(tmp_path / certs.FILE, KEY, None, None, SystemClock())
    assert ("rotate-ca publish" in caplog.text) is warned


def test_a_leaf_ends_with_its_authority() -> None:
    text, key = certs.new_authority(NOW - dt.timedelta(days=3649))
    issuer = x509.load_pem_x509_certificate(text.encode())
    certificate = cache(authorities()).decided.certificate
    assert certificate is not None
    leaf = certs.leaf_of(certificate, "demo", ec.generate_private_key(ec.SECP256R1()), issuer, key)
    assert leaf.not_valid_after_utc == issuer.not_valid_after_utc
