"""One call, as CloudTrail tells of it [CloudTrail User Guide, "CloudTrail record contents", "userIdentity element"]. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

VERSION: Final = "1.11"
PART_BYTES_MAX: Final = 100 << 10
"""Parameters and answers that take more are left out of a record ["requestParameters": "maximum size of 100 KB"]."""
_WHOLE_SECOND: Final = "%Y-%m-%dT%H:%M:%SZ"

Wire = Mapping[str, Any]


class SessionIssuer(msgspec.Struct, frozen=True, kw_only=True):
    """Whose session it is: a role, or a user."""

    type: Literal["Role", "IAMUser", "Root"]
    principal_id: str
    arn: str
    account: str
    name: str

    def shown(self) -> Wire:
        whole = {"type": self.type, "principalId": self.principal_id, "arn": self.arn, "accountId": self.account}
        return {**whole, "userName": self.name}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked. ``name`` is what LookupEvents calls the user name: of a role's session it is the session's."""

    type: Literal["Root", "IAMUser", "AssumedRole", "Unknown"]
    account: str = ""
    principal_id: str = ""
    arn: str = ""
    name: str = ""
    issuer: SessionIssuer | None = None
    session_began_at: dt.datetime | None = None

    def shown(self, access_key: str) -> Wire:
        """Without what is not known of it."""
        known = {
            "type": self.type,
            "principalId": self.principal_id,
            "arn": self.arn,
            "accountId": self.account,
            "accessKeyId": access_key,
            "userName": "" if self.type == "AssumedRole" else self.name,
        }
        whole: dict[str, Any] = {key: value for key, value in known.items() if value}
        if self.session_began_at is not None:
            began = {"creationDate": self.session_began_at.strftime(_WHOLE_SECOND), "mfaAuthenticated": "false"}
            whole["sessionContext"] = {
                **({"sessionIssuer": self.issuer.shown()} if self.issuer else {}),
                "attributes": began,
            }
        return whole


class Called(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to record of a call. ``asked`` and ``answered`` have no secrets any more; None: nothing was understood of it,
    or nothing is told of the answer. ``resources``: ARN → type, as CloudFormation names types."""

    identity: Identity
    access_key: str
    source: str
    operation: str
    region: str
    address: str | None
    user_agent: str
    request_id: str
    event_id: str
    at: dt.datetime
    seconds: float
    reads: bool
    asked: Wire | None = None
    answered: Wire | None = None
    error: tuple[str, str] | None = None
    resources: Mapping[str, str] = {}


def line(called: Called) -> bytes:
    """The record, on a line of its own."""
    code, message = called.error or (None, None)
    account = called.identity.account
    whole: dict[str, Any] = {
        "eventVersion": VERSION,
        "userIdentity": called.identity.shown(called.access_key),
        "eventTime": called.at.strftime(_WHOLE_SECOND),
        "eventSource": called.source,
        "eventName": called.operation,
        "awsRegion": called.region,
        "sourceIPAddress": called.address or "",
        "userAgent": called.user_agent,
        **({"errorCode": code, "errorMessage": message} if code else {}),
        "requestParameters": _part(called.asked),
        "responseElements": _part(called.answered),
        # What CloudTrail has no field for goes here ["additionalEventData"].
        "additionalEventData": {"durationMilliseconds": round(called.seconds * 1000, 3)},
        "requestID": called.request_id,
        "eventID": called.event_id,
        "readOnly": called.reads,
        **({"resources": [_resource(arn, kind, account) for arn, kind in called.resources.items()]} if called.resources else {}),
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": account,
        "eventCategory": "Management",
    }
    return msgspec.json.encode(whole, enc_hook=str) + b"\n"


def _resource(arn: str, kind: str, account: str) -> Wire:
    return {"ARN": arn, "accountId": account, "type": kind}


def _part(value: Wire | None) -> Wire | None:
    """Parameters or an answer, named as CloudTrail does: the first letter is small."""
    if not value:
        return None
    shown = _small(value)
    return shown if len(msgspec.json.encode(shown, enc_hook=str)) <= PART_BYTES_MAX else {"omitted": True}


def _small(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {f"{name[:1].lower()}{name[1:]}": _small(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_small(each) for each in value]
    if isinstance(value, dt.datetime):
        return value.strftime(_WHOLE_SECOND)
    return value


# ------------------------------------------------------------------ read again


class _Who(msgspec.Struct, rename="camel"):
    user_name: str = ""
    access_key_id: str = ""
    arn: str = ""
    type: str = ""


class _Resource(msgspec.Struct):
    arn: str = msgspec.field(name="ARN", default="")
    type: str = ""


class Recorded(msgspec.Struct, rename="camel"):
    """What LookupEvents asks of a record."""

    event_id: str = msgspec.field(name="eventID")
    event_name: str
    event_source: str
    event_time: dt.datetime
    read_only: bool
    user_identity: _Who
    resources: list[_Resource] = []

    @property
    def user(self) -> str:
        """A session goes by its own name."""
        who = self.user_identity
        return who.arn.rpartition("/")[2] if who.type == "AssumedRole" else who.user_name or ("root" if who.type == "Root" else "")

    @property
    def things(self) -> list[tuple[str, str]]:
        """Type and name of what it was about."""
        return [(each.type, each.arn.split(":", 5)[-1].replace("/", ":").rpartition(":")[2]) for each in self.resources]


def read(text: bytes) -> Recorded | None:
    """None for a line that is none of ours, such as one that a crash cut short."""
    try:
        return msgspec.json.decode(text, type=Recorded)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
