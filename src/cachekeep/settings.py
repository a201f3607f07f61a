"""What an operator may set, in one frozen value. Pure: the command line gives flags
and the environment, this gives ``Settings``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

PREFIX: Final = "CACHEKEEP_"
"""``CACHEKEEP_PORT`` sets ``port``, and so for every field."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One installation. Times in seconds."""

    data_dir: Path
    """Everything that is kept: database, root key, engines that were built, the nodes' own directories."""
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8379
    """0 takes a free one."""
    region: Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2}(-[a-z0-9]+)+-\d+$")] = "us-east-1"
    account: Annotated[str, msgspec.Meta(pattern=r"^\d{12}$")] = "000000000000"
    auth: Literal["enforce", "open"] = "enforce"
    address_pool: str = "127.77.0.0/16"
    """A network or a list of addresses, for nodes and endpoints."""
    database: str = ""
    """URL; empty: an SQLite file in ``data_dir``. May hold a password, so it is never shown."""
    root_key: Path | None = None
    """The file that holds the key under which secrets are kept; None: one in ``data_dir``, made when there is none."""
    tls: bool = False
    """Serve the API by TLS. Without, it is served on this machine alone."""
    tls_names: str = ""
    """Names and addresses, with commas between, by which the API is called beside its host."""
    ca_cert: Path | None = None
    """The authority that issues certificates of caches, PEM, with those above it after it; None: one that is made here."""
    ca_key: Path | None = None
    """Its key, PEM."""
    audit_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20)] = 256 << 20
    """How much of what was asked of the API is kept on record: the oldest goes first."""
    vault: str = ""
    """Where snapshots are kept: a directory, or s3://, gs://, az:// with endpoint and credentials from the environment; empty: a
    directory in ``data_dir``."""
    bucket: Annotated[str, msgspec.Meta(pattern=r"^$|^[a-z0-9.-]+=[^,]+(,[a-z0-9.-]+=[^,]+)*$")] = ""
    """What requests call buckets, and where each is: name=URL, with commas between; a URL as for ``vault``."""
    verify_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 30
    """The most memory that an engine may have into which a snapshot is restored for a trial; what needs more is only read."""
    zone_count: Annotated[int, msgspec.Meta(ge=1, le=6)] = 3
    overcommit: bool = True
    """Take on more node memory than the machine has: right for a laptop, where caches are never full."""
    any_subnet: bool = False
    """Take subnets of other accounts for zones of this one, always the same, and security groups for the default one: for
    configurations and test suites that bring their own ids."""
    default_ingress: Literal["everybody", "members"] = "everybody"
    """Who the default security group lets in, until its rules are changed: everybody who reaches an address, or its members alone,
    as at AWS, which needs root and nft."""
    build_engines: bool = False
    """Build a Valkey that is safe and has TLS, in the background, where none is installed."""
    hold_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 8.0
    """How long a Describe of one resource in transition is held open."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["plain", "json"] = "plain"
    silence_seconds: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    """How long a primary that is there may leave everything unanswered before it counts as hung. An engine that runs a script is
    silent for 5 s, then it says that it is busy: below that, scripts of clients cause failovers."""
    command_seconds: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """How long it may while its process is at work, as with one long command."""
    script_seconds: Annotated[float, msgspec.Meta(ge=0)] = 15.0
    """How long a node may be busy with a client's script before that is ended; one that has written is waited for."""
    linger_seconds: Annotated[float, msgspec.Meta(ge=0)] = 35.0
    """How long an emptied shard still sends its clients on, and for how long no address that was given up is used again."""
    fence: Literal["confirm", "starve"] = "confirm"
    """What comes before a successor: a primary confirmed stopped; or, where that cannot be had, one that must refuse writes."""
    loss_budget_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of so many seconds acknowledged writes may be lost by a promotion that nobody asked for; 0: only what is on its way."""
    loss_budget_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How far behind what was last heard of its primary a replica may be and still be promoted by itself; 0: never unasked."""

    test_failovers_per_day_max: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """How many node groups TestFailover takes in 24 hours: 15 at AWS; None: as many as are asked for."""

    @property
    def zones(self) -> tuple[str, ...]:
        """``us-east-1a``, ``us-east-1b`` …"""
        return tuple(self.region + letter for letter in "abcdef"[: self.zone_count])

    @property
    def buckets(self) -> dict[str, str]:
        return dict(each.split("=", 1) for each in self.bucket.split(",") if each)

    @property
    def vault_url(self) -> str:
        return self.vault or str(self.data_dir / "vault")

    @property
    def database_url(self) -> str:
        return self.database or str(self.data_dir / "cachekeep.db")


class ServedAt(msgspec.Struct, frozen=True):
    """Where a control plane serves, or served last; in ``ENDPOINT_FILE`` of its data directory. ``pid`` 0:
    it is only where one would."""

    url: str
    region: str
    pid: int = 0


ENDPOINT_FILE: Final = "endpoint.json"
AUDIT_DIR: Final = "audit"
"""In the data directory: who has asked for what."""
JOURNAL_FILE: Final = "decisions.journal"
"""In the data directory: what keepers decide while the database cannot take it."""
CA_FILE: Final = "ca.pem"
"""In the data directory: by what clients know caches, and the API, with TLS."""
ENGINES_DIR: Final = "engines"
"""In the data directory: engines that were built here, one directory each."""


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """``$XDG_DATA_HOME/cachekeep``, else ``~/.local/share/cachekeep`` (XDG Base Directory Specification:
    relative paths are ignored)."""
    xdg = environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or "/") / ".local" / "share"
    return base / "cachekeep"


def read(environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from flags (None: not given), then ``CACHEKEEP_…`` of the environment, then defaults.

    Raises ``ValueError`` naming the flag or variable whose value cannot be.
    """
    values: dict[str, Any] = {"data_dir": default_data_dir(environ)}
    for field in Settings.__struct_fields__:
        if (given := (flags or {}).get(field)) is not None:
            where, text = f"--{field.replace('_', '-')}", given
        elif given := environ.get(PREFIX + field.upper()):
            where, text = PREFIX + field.upper(), given
        else:
            continue
        values[field] = _value(field, where, text)
    values["data_dir"] = values["data_dir"].absolute()
    return Settings(**values)


def _value(field: str, where: str, given: Any) -> Any:
    about = next(f for f in msgspec.structs.fields(Settings) if f.name == field)
    if about.type in (Path, Path | None):
        return Path(given).expanduser()
    if about.type is bool and isinstance(given, str):
        given = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}.get(
            given.lower(), given
        )
    try:
        return msgspec.convert(given, about.type, strict=False)
    except msgspec.ValidationError:
        shown = "" if field == "database" else f" {given!r}"
        raise ValueError(f"{where}{shown} cannot be used: it must {_shape(about)}.") from None


def _shape(about: msgspec.structs.FieldInfo) -> str:
    """What a value must do, in words."""
    options = msgspec.inspect.type_info(about.type)
    wanted = next(o for o in getattr(options, "types", (options,)) if not isinstance(o, msgspec.inspect.NoneType))
    if isinstance(wanted, msgspec.inspect.LiteralType):
        return f"be {' or '.join(map(str, wanted.values))}"
    if isinstance(wanted, msgspec.inspect.BoolType):
        return "be yes or no"
    if isinstance(wanted, msgspec.inspect.StrType):
        return f"look like {about.default}"
    limits = {"at least": wanted.ge, "more than": wanted.gt, "at most": wanted.le}  # type: ignore[union-attr]
    said = " and ".join(f"{words} {limit}" for words, limit in limits.items() if limit is not None)
    return f"be {'a whole number' if isinstance(wanted, msgspec.inspect.IntType) else 'a number'}, {said}"
