"""What is recorded of a call on its way through the gateway, without its secrets."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cachekeep.audit.record import Called, Identity, line
from cachekeep.audit.trail import NotRecorded, Trail
from cachekeep.clock import Clock
from cachekeep.wire.caller import Principal, Seen
from cachekeep.wire.faults import ApiError
from cachekeep.wire.http import HttpRequest
from cachekeep.wire.model import Shape

HIDDEN: Final = "HIDDEN_DUE_TO_SECURITY_REASONS"
"""CloudTrail's own words in the place of a secret."""
_SECRET: Final = re.compile(
    r"(Passwords?|SecretAccessKey|AuthToken|SessionToken|IdentityToken|SAMLAssertion|TokenCode|GrantTokens?|AuthenticationCode\d"
    r"|PrivateKey|StringSeed|QRCodePNG|PreSharedKey)$"
)
_PASSWORD_IN_RULES: Final = re.compile(r"(^|[\s(])[<>#!]\S")
"""Redis' access strings may bring passwords and their hashes [redis.io, ACL SETUSER], though ElastiCache takes none there."""
_TEXT_MAX: Final = 256
_ACTION: Final = re.compile(rb"(?:^|&)Action=([A-Za-z0-9]{1,100})(?:&|$)")
_TARGET: Final = re.compile(r"[A-Za-z0-9_.]{1,100}")

_TYPES: Final = {
    ("elasticache", "cluster"): "AWS::ElastiCache::CacheCluster",
    ("elasticache", "replicationgroup"): "AWS::ElastiCache::ReplicationGroup",
    ("elasticache", "parametergroup"): "AWS::ElastiCache::ParameterGroup",
    ("elasticache", "subnetgroup"): "AWS::ElastiCache::SubnetGroup",
    ("elasticache", "securitygroup"): "AWS::ElastiCache::SecurityGroup",
    ("elasticache", "usergroup"): "AWS::ElastiCache::UserGroup",
    ("elasticache", "serverlesscache"): "AWS::ElastiCache::ServerlessCache",
    ("elasticache", "globalreplicationgroup"): "AWS::ElastiCache::GlobalReplicationGroup",
}
_TITLES: Final = {"elasticache": "ElastiCache", "iam": "IAM", "kms": "KMS", "ec2": "EC2", "sts": "STS", "sns": "SNS"}


@dataclasses.dataclass(slots=True)
class Recording:
    """One request, and what has become clear of it so far."""

    request: HttpRequest
    request_id: str
    at: dt.datetime
    region: str
    service: str = ""
    operation: str = ""
    access_key: str = ""
    principal: Principal | None = None
    """None: it is not believed to be anybody's."""
    reads: bool = True
    input: Shape | None = None
    output: Shape | None = None
    params: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    error: tuple[str, str] | None = None
    seen: Seen = dataclasses.field(default_factory=Seen)
    began: float = dataclasses.field(default_factory=time.monotonic)


class Auditor:
    """Records every call: in ``known`` those of callers that are believed, in ``strangers`` all others, who can only push out each
    other's lines."""

    def __init__(self, known: Trail, strangers: Trail, clock: Clock) -> None:
        self._known, self._strangers, self._clock = known, strangers, clock

    def admit(self) -> None:
        """Before a change. Raises ApiError where it could not be recorded."""
        try:
            self._known.check()
        except NotRecorded as error:
            text = f"Calls cannot be recorded at the moment ({error}), so nothing was changed. Try again."
            raise ApiError("ServiceUnavailable", text, status=503) from None

    async def tell(self, heard: Recording) -> None:
        """Record a call. Of a change this returns when its line is on the disk.

        Raises ApiError where it is not, though the change was made: with a status that no client tries again by itself.
        """
        text = line(self._called(heard))
        if heard.principal is None:
            self._strangers.put(text)
        elif heard.reads:
            self._known.put(text)
        else:
            try:
                await self._known.write(text)
            except NotRecorded as error:
                if heard.error is None:
                    words = (
                        f"The change was made. Its record is not on the disk yet ({error}), and is written as soon as it can be."
                    )
                    raise ApiError("ChangeNotRecorded", words) from None

    def let_go(self, heard: Recording) -> None:
        """A call whose caller is shown out before its answer: what became of it is not known."""
        heard.error = ("RequestCanceled", "The caller was not answered; what was asked for may have been done.")
        (self._strangers if heard.principal is None else self._known).put(line(self._called(heard)))

    def _called(self, heard: Recording) -> Called:
        who = heard.seen.identity
        if who is None and heard.principal is not None:
            root = heard.principal.arn.endswith(":root")
            who = root_of(heard.principal) if root else Identity(type="Unknown", account=heard.principal.account)
        asked = shown(heard.input, heard.params)
        error = heard.error
        if error is not None:
            error = (error[0], _without(error[1], secrets_of(heard.input, heard.params)))
        return Called(
            identity=who or Identity(type="Unknown"),
            access_key=heard.access_key[:_TEXT_MAX],
            source=f"{heard.service or 'unknown'}.amazonaws.com",
            operation=heard.operation or _named(heard.request),
            region=heard.region,
            address=heard.request.client,
            user_agent=heard.request.headers.get("user-agent", "")[:_TEXT_MAX],
            request_id=heard.request_id,
            event_id=self._clock.new_id(),
            at=self._clock.now(),
            seconds=time.monotonic() - heard.began,
            reads=heard.reads,
            asked=asked,
            answered=None if heard.reads or error else shown(heard.output, heard.result),
            error=error,
            resources={arn: type_of(arn) for arn in heard.seen.resources if not arn.endswith("*")},
        )


def root_of(principal: Principal) -> Identity:
    """The account's root."""
    return Identity(type="Root", account=principal.account, principal_id=principal.account, arn=principal.arn)


def _named(request: HttpRequest) -> str:
    """The operation that a request names that was not parsed, because its sender is not believed."""
    if _TARGET.fullmatch(target := request.headers.get("x-amz-target", "")):
        return target.rpartition(".")[2]
    found = _ACTION.search(request.body[:1024]) or _ACTION.search(request.query[:1024].encode(errors="replace"))
    return found[1].decode() if found else ""


def type_of(arn: str) -> str:
    """The type of a resource, named as CloudFormation and CloudTrail do."""
    service, rest = arn.split(":", 5)[2], arn.split(":", 5)[-1]
    kind = re.split("[:/]", rest, maxsplit=1)[0]
    return _TYPES.get((service, kind), f"AWS::{_TITLES.get(service, service)}::{kind.capitalize()}")


# ------------------------------------------------------------------ without secrets


def _is_secret(name: str, shape: Shape, value: Any) -> bool:
    if shape.sensitive or shape.type == "blob" or (_SECRET.search(name) and not isinstance(value, bool | int)):
        return True
    return name.endswith("AccessString") and isinstance(value, str) and bool(_PASSWORD_IN_RULES.search(value))


def shown(shape: Shape | None, value: Any) -> Any:
    """Parameters or an answer as they are recorded: by the model, with ``HIDDEN`` where a secret stands."""
    if shape is None or value is None:
        return value if shape is None else None
    match shape.type:
        case "structure":
            return {
                name: HIDDEN if _is_secret(name, member.shape, value[name]) else shown(member.shape, value[name])
                for name, member in shape.members.items()
                if value.get(name) is not None
            }
        case "list":
            return [shown(shape.item.shape, each) for each in value]
        case "map":
            return {str(key): shown(shape.value.shape, each) for key, each in value.items()}
        case "blob":
            return HIDDEN
    return value


def secrets_of(shape: Shape | None, value: Any) -> Iterator[str]:
    """The texts that ``shown`` hides."""
    if shape is None or value is None:
        return
    if shape.type == "structure":
        for name, member in shape.members.items():
            if (inner := value.get(name)) is not None:
                yield from _texts(inner) if _is_secret(name, member.shape, inner) else secrets_of(member.shape, inner)
    elif shape.type in ("list", "map"):
        inside = shape.item.shape if shape.type == "list" else shape.value.shape
        for each in value if shape.type == "list" else value.values():
            yield from secrets_of(inside, each)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) > 1:
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _without(message: str, secrets: Iterator[str]) -> str:
    for secret in secrets:
        message = message.replace(secret, HIDDEN)
    return message
