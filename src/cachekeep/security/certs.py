"""The certificate authorities of an installation, and the certificates that they issue.

A certificate is issued where it is needed, from what has been decided of it (``model.Certificate``). Its key is derived from the
authority's (HKDF, RFC 5869), so it is stored nowhere but beside the engine that has it, and whoever issues it again comes to the
same one. Keys of authorities are kept sealed under the root key.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import logging
import os
import secrets
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec.structs import replace

from cachekeep.clock import Clock
from cachekeep.engines.tls import Papers
from cachekeep.errors import Unsealable, Unusable
from cachekeep.model import Cache, Certificate, Secret
from cachekeep.security.sealing import Sealing
from cachekeep.settings import CA_FILE

log = logging.getLogger("cachekeep")

FILE: Final = "authorities.json"
"""In the data directory: their certificates, and their keys sealed."""
_LIFETIME: Final = dt.timedelta(days=3650)
_ENDS_SOON: Final = dt.timedelta(days=120)
"""Time for the last certificate that it issues in full, and to go to another."""
_SKEW: Final = dt.timedelta(hours=1)
"""By so much a client's clock may be behind."""
_CURVE_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256 (SEC 2, 2.4.2)."""
_OWNER: Final = "authority"

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """One that issues certificates, or did."""

    id: str
    """The beginning of its certificate's SHA-256, hexadecimal."""
    certificate: str
    """PEM; of one that was given, with those above it that came with it."""
    sealed: str
    """Its key; empty: it was thrown away."""
    state: Literal["published", "issuing", "retired"] = "issuing"
    """``published``: clients may learn of it, and it issues nothing yet. ``retired``: nobody shows anything that it issued."""


class Authorities:
    """Those of an installation. Of those that issue, or did, the last does."""

    def __init__(self, known: Iterable[Authority], sealing: Sealing, path: Path | None = None) -> None:
        self._known = {a.id: a for a in known}
        self._sealing, self._path = sealing, path
        self._key_of = lru_cache(maxsize=8)(self._opened)
        self._issued = lru_cache(maxsize=1024)(self._issue)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of those that issue, or did, and are trusted; the last does."""
        return tuple(a.id for a in self._known.values() if a.state == "issuing")

    @property
    def ends_at(self) -> dt.datetime:
        """When the one that issues ends. There has to be one."""
        return x509.load_pem_x509_certificate(self._known[self.ids[-1]].certificate.encode()).not_valid_after_utc

    @property
    def next_id(self) -> str | None:
        """Of the one that is published and issues nothing yet."""
        return next((a.id for a in self._known.values() if a.state == "published"), None)

    def pem(self, ids: Iterable[str] | None = None) -> str:
        """The certificates of these authorities; None: of all that clients are to trust. Raises ``Unsealable`` for one that is not
        there."""
        if ids is None:
            return _published(self._known.values())
        return "".join(self._get(id).certificate for id in ids)

    def make(self, clock: Clock) -> None:
        """Make one where there is none, and publish all. Raises ``Unusable`` where it cannot be kept, ``Unsealable`` without a root
        key."""
        if not self.ids:
            self.add(*new_authority(clock.now()))
        elif self._path is not None and not self._path.with_name(CA_FILE).exists():
            _write(self._path.with_name(CA_FILE), _published(self._known.values()).encode())

    def add(self, certificate: str, key: Key, *, issues: bool = True) -> None:
        """One more, which issues from now on; one that is there already goes to the end. ``issues`` False: it is only published.
        Raises as ``make`` does."""
        id = id_of(certificate)
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        sealed = self._sealing.seal(Secret(text), owner=_OWNER, purpose=id)
        known = {k: a for k, a in self._known.items() if k != id}
        known[id] = Authority(id=id, certificate=certificate, sealed=sealed, state="issuing" if issues else "published")
        self._keep(known)

    def promote(self) -> None:
        """Have the one that is published issue from now on. Raises ``Unusable``."""
        known = dict(self._known)
        if (id := self.next_id) is not None:
            known[id] = replace(known.pop(id), state="issuing")
        self._keep(known)

    def retire(self) -> None:
        """Of those that issued, none is trusted any more but the last, and their keys are thrown away. Raises ``Unusable``."""
        old = self.ids[:-1]
        self._keep({id: replace(a, sealed="", state="retired") if id in old else a for id, a in self._known.items()})

    def _keep(self, known: dict[str, Authority]) -> None:
        if self._path is not None:
            _write(self._path, msgspec.json.format(msgspec.json.encode([*known.values()])))
            _write(self._path.with_name(CA_FILE), _published(known.values()).encode())
        self._known = known

    # -- of caches

    def trust_of(self, cache: Cache) -> str:
        """The authorities that may have issued what the nodes of a cache show, PEM; empty without TLS."""
        if not cache.encrypted or cache.decided.certificate is None:
            return ""
        return self.pem(dict.fromkeys((*cache.decided.certificate.trusted, *cache.wanted.authorities)))

    def papers_of(self, cache: Cache) -> Papers | None:
        """What the nodes of a cache show and go by; None without TLS. Raises ``Unsealable``."""
        certificate = cache.decided.certificate
        if certificate is None:
            return None
        return Papers(self.identity(cache.uid, cache.name, certificate), self.pem(certificate.trusted))

    def identity(self, owner: str, name: str, certificate: Certificate) -> str:
        """Key, certificate and what is above it, PEM. Raises ``Unsealable``."""
        return self._issued(owner, name, certificate)

    def _issue(self, uid: str, name: str, certificate: Certificate) -> str:
        authority = self._get(certificate.authority)
        issuer, *above = x509.load_pem_x509_certificates(authority.certificate.encode())
        if issuer.not_valid_after_utc <= certificate.issued_at:
            raise Unsealable(
                f"the certificate authority {authority.id} ended on {issuer.not_valid_after_utc:%Y-%m-%d} and issues nothing more: "
                "start again with another (--ca-cert, --ca-key)"
            )
        key = self._key_of(authority.id)
        own = _derived(key, f"{uid}/{certificate.serial}")
        leaf = leaf_of(certificate, name, own, issuer, key)
        shown = [leaf, *(c for c in (issuer, *above) if c.subject != c.issuer)]  # whoever trusts one at the top has it
        text = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return b"".join((text, *(c.public_bytes(serialization.Encoding.PEM) for c in shown))).decode()

    def _opened(self, id: str) -> Key:
        text = self._sealing.open(self._get(id).sealed, owner=_OWNER, purpose=id).value
        key = serialization.load_pem_private_key(text.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        return key

    def _get(self, id: str) -> Authority:
        if id not in self._known:
            raise Unsealable(
                f"the certificate authority {id} is not in {self._path}, so nothing can be issued by it or checked against it. "
                "Nodes go on with the certificates that they have: bring that file back from a backup, and start again"
            )
        return self._known[id]


def _published(authorities: Iterable[Authority]) -> str:
    return "".join(a.certificate for a in authorities if a.state != "retired")


def leaf_of(
    certificate: Certificate, name: str, own: ec.EllipticCurvePrivateKey, issuer: x509.Certificate, key: Key
) -> x509.Certificate:
    """What has been decided, as X.509 (RFC 5280). Nodes are clients of each other, too."""
    told = [x509.IPAddress(a) if (a := _address(n)) is not None else x509.DNSName(n) for n in certificate.names]
    until = min(certificate.expires_at, issuer.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(certificate.issued_at - _SKEW, issuer.not_valid_before_utc))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName(told), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(_issued_by(issuer), critical=False)
        .sign(key, hashes.SHA256())
    )


def new_authority(now: dt.datetime) -> tuple[str, Key]:
    """Certificate (PEM) and key of one that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Cachekeep authority {secrets.token_hex(4)}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), key


def id_of(certificate: str) -> str:
    """Of the first certificate of a PEM text."""
    return x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256()).hex()[:16]


def load(path: Path, sealing: Sealing) -> Authorities:
    """Those in ``path``; none where it is not there. Raises ``Unusable`` if it cannot be read."""
    return Authorities(read(path), sealing, path)


def furnished(path: Path, sealing: Sealing, certificate: Path | None, key: Path | None, clock: Clock) -> Authorities:
    """Those in ``path``; the one that is given, or else one that is made where there is none, issues. Raises ``Unusable``, or
    ``Unsealable`` without a root key."""
    authorities = load(path, sealing)
    if certificate is not None or key is not None:
        if certificate is None or key is None:
            raise Unusable("a certificate authority is its certificate and its key: give both, --ca-cert and --ca-key, or neither.")
        text, private = given(certificate, key, clock.now())
        if authorities.ids[-1:] != (id_of(text),):
            authorities.add(text, private)
    authorities.make(clock)
    ends_at = authorities.ends_at
    if ends_at - clock.now() < _ENDS_SOON:
        log.warning(
            "the certificate authority %s ends on %s, and certificates with it. Begin another: `cachekeep rotate-ca publish`",
            authorities.ids[-1],
            f"{ends_at:%Y-%m-%d}",
        )
    return authorities


def read(path: Path) -> list[Authority]:
    """Those in a file. Raises ``Unusable``."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Authority])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise Unusable(
            f"the certificate authorities in {path} cannot be read: {error}. Bring the file back from a backup."
        ) from None


def given(certificate: Path, key: Path, now: dt.datetime) -> tuple[str, Key]:
    """An authority from files: its certificate, those above it after that, and its key, PEM. Raises ``Unusable``."""
    try:
        text, private = certificate.read_text(), serialization.load_pem_private_key(key.read_bytes(), None)
        own, *_ = x509.load_pem_x509_certificates(text.encode())
    except (OSError, ValueError, TypeError) as error:
        raise Unusable(f"no certificate authority can be had from {certificate} and {key}: {error}. Nothing was started.") from None
    why = _why_not(own, private, now)
    if why is not None:
        raise Unusable(f"{certificate} cannot be a certificate authority with the key {key}: {why}. Nothing was started.")
    assert isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return text if text.endswith("\n") else text + "\n", private


def _why_not(own: x509.Certificate, key: object, now: dt.datetime) -> str | None:
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return "the key is neither of an elliptic curve nor RSA"
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != own.public_key().public_bytes(*form):
        return "the key belongs to another certificate"
    with contextlib.suppress(x509.ExtensionNotFound):
        if own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return None if own.not_valid_before_utc <= now < own.not_valid_after_utc else "it is not valid now"
    return "it says of itself that it is no authority (basicConstraints CA)"


def _derived(key: Key, info: str) -> ec.EllipticCurvePrivateKey:
    """RFC 5869; 64 bits more than the order has, so that no key is likelier than another (FIPS 186-5, A.2.1)."""
    secret = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    found = HKDF(hashes.SHA256(), 40, None, f"cachekeep certificate {info}".encode()).derive(secret)
    return ec.derive_private_key(int.from_bytes(found) % (_CURVE_ORDER - 1) + 1, ec.SECP256R1())


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    with contextlib.suppress(x509.ExtensionNotFound):
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise Unusable(f"the certificate authorities cannot be kept in {path}: {error}. Nothing was changed.") from error
