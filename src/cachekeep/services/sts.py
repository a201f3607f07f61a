"""STS: who am I, and temporary credentials, which are stored nowhere: what they stand for is in their token."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachekeep.model import IamRole, IamSession
from cachekeep.security.policy.parse import MalformedPolicy, parse
from cachekeep.services.core.authorise import text_of
from cachekeep.services.core.callers import identify, role_arn, session_arn
from cachekeep.services.core.context import Context, ServiceSettings
from cachekeep.services.core.operation import Service, reads, writes
from cachekeep.services.core.parameters import Declared, Effect, NotYet
from cachekeep.services.core.rights import Arn, Guard, Rights
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_POLICY_CHARACTERS_MAX: Final = 2048
_ATTACHED_MAX: Final = 10
_TAGS_MAX: Final = 50
_CHAINED_SECONDS_MAX: Final = 3600
_OF_A_ROLE_SECONDS: Final = 3600
_OF_A_USER_SECONDS: Final = 43200


async def get_caller_identity(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Account, ARN and id of whoever signed the request."""
    principal, (_, caller) = call.principal, await identify(call, tx, context.settings.issuer)
    identity = principal.account
    if caller is not None:
        role = isinstance(caller.who, IamRole) and caller.session
        identity = f"{caller.who.id}:{role.session_name}" if role else caller.who.id
    return {"UserId": identity, "Account": principal.account, "Arn": principal.arn}


async def assume_role(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Temporary credentials of a role, for whoever it trusts. They end by themselves, and with the role."""
    _, caller = await identify(call, tx, context.settings.issuer)
    if caller is None:
        raise ApiError("AccessDenied", "Roles may not be assumed by root accounts.", status=403)
    params, now = call.params, call.received_at.replace(microsecond=0)
    role = await _role(tx, params["RoleArn"])
    if role is None or role_arn(context.settings.account, role) != params["RoleArn"]:
        text = f"User: {call.principal.arn} is not authorized to perform: sts:AssumeRole on resource: {params['RoleArn']}"
        raise ApiError("AccessDenied", text, status=403)
    chained = caller.session is not None and caller.session.kind == "role"
    session = IamSession(
        kind="role",
        name=role.name,
        id=role.id,
        session_name=params["RoleSessionName"],
        began_at=now,
        expires_at=now + dt.timedelta(seconds=_seconds(params.get("DurationSeconds"), role, chained=chained)),
        policies=_policies(params.get("Policy")),
        attached=await _attached(params.get("PolicyArns", ()), tx),
        tags=_tags(call),
    )
    name = session.session_name
    return {
        "Credentials": _credentials(session, context),
        "AssumedRoleUser": {
            "AssumedRoleId": f"{role.id}:{name}",
            "Arn": session_arn(context.settings.account, role, session),
        },
        **({"PackedPolicySize": _packed(session)} if session.policies or session.attached or session.tags else {}),
    }


async def _role(tx: Transaction, arn: str) -> IamRole | None:
    return await tx.get(IamRole, arn.rpartition("/")[2].lower())


def _seconds(asked: int | None, role: IamRole, *, chained: bool) -> int:
    """Raises ApiError ValidationError. Without a wish it is an hour, and less only where the role says so."""
    if asked is None:
        return min(_OF_A_ROLE_SECONDS, role.session_seconds_max)
    if chained and asked > _CHAINED_SECONDS_MAX:
        words = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
        raise ApiError("ValidationError", words)
    if asked > role.session_seconds_max:
        raise ApiError("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
    return asked


def _policies(text: str | None) -> tuple[str, ...]:
    """Raises ApiError MalformedPolicyDocument or PackedPolicyTooLarge."""
    if text is None:
        return ()
    try:
        parse(text, "session")
    except MalformedPolicy as error:
        raise ApiError("MalformedPolicyDocument", str(error)) from None
    if len(text) > _POLICY_CHARACTERS_MAX:
        raise ApiError("PackedPolicyTooLarge", f"A session policy has at most {_POLICY_CHARACTERS_MAX} characters.")
    return (text,)


async def _attached(given: Sequence[Mapping[str, str]], tx: Transaction) -> tuple[str, ...]:
    """Raises ApiError."""
    arns = tuple(each.get("arn", "") for each in given)
    if len(arns) > _ATTACHED_MAX:
        raise ApiError("PackedPolicyTooLarge", f"A session has at most {_ATTACHED_MAX} managed policies.")
    for arn in arns:
        if await text_of(tx, arn) is None:
            raise ApiError("MalformedPolicyDocument", f"Policy {arn} does not exist or is not attachable.")
    return arns


def _tags(call: Call) -> dict[str, str]:
    """Raises ApiError InvalidParameterValue."""
    tags = {each["Key"]: each["Value"] for each in call.params.get("Tags", ())}
    if len({key.lower() for key in tags}) < len(call.params.get("Tags", ())):
        raise ApiError("InvalidParameterValue", "Duplicate tag keys found. Please note that Tag keys are case insensitive.")
    if len(tags) > _TAGS_MAX:
        raise ApiError("InvalidParameterValue", f"A session has at most {_TAGS_MAX} tags.")
    return tags


def _packed(session: IamSession) -> int:
    """In percent of what there may be."""
    size = sum(map(len, (*session.policies, *session.attached, *session.tags, *session.tags.values())))
    return min(100, -(-100 * size // (2 * _POLICY_CHARACTERS_MAX)))


async def get_session_token(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Temporary credentials of the user who asks. They open neither IAM nor most of STS."""
    _, caller = await identify(call, tx, context.settings.issuer)
    if caller is None:
        text = "The account's root, whose key `cachekeep env` prints, has no temporary credentials: make a user."
        raise ApiError("AccessDenied", text, status=403)
    now = call.received_at.replace(microsecond=0)
    seconds = call.params.get("DurationSeconds", _OF_A_USER_SECONDS)
    ends = now + dt.timedelta(seconds=seconds)
    session = IamSession(kind="user", name=caller.who.name, id=caller.who.id, began_at=now, expires_at=ends)
    return {"Credentials": _credentials(session, context)}


def _credentials(session: IamSession, context: Context) -> Mapping[str, Any]:
    access_key, secret, token = context.settings.issuer.issue_session(session)
    return {"AccessKeyId": access_key, "SecretAccessKey": secret, "SessionToken": token, "Expiration": session.expires_at}


def _names(call: Call, settings: ServiceSettings) -> Mapping[str, Sequence[str]]:
    return {"role": [Arn(call.params["RoleArn"])]} if call.params.get("RoleArn") else {}


def _keys(call: Call, settings: ServiceSettings) -> Mapping[str, str]:
    asked = {"sts:ExternalId": "ExternalId", "sts:RoleSessionName": "RoleSessionName"}
    return {key: call.params[name] for key, name in asked.items() if call.params.get(name)}


def _acts(call: Call) -> Sequence[str]:
    """Who brings tags must be allowed to do so."""
    return [call.operation, *(["TagSession"] if call.params.get("Tags") else [])]


async def _trust(tx: Transaction, arn: str) -> Guard | None:
    role = await _role(tx, arn) if ":role/" in arn else None
    return (
        Guard(role.trust, placed=True, ids=role.trusted) if role is not None and arn.endswith(f":role/{role.role_name}") else None
    )


async def _role_tags(tx: Transaction, arn: str) -> Mapping[str, str]:
    role = await _role(tx, arn) if ":role/" in arn else None
    return role.tags if role is not None else {}


_PARAMETERS: Final[Declared] = {
    "RoleArn": Effect("the role"),
    "RoleSessionName": Effect("the name of the session"),
    "Policy": Effect("the most that the session may do"),
    "PolicyArns": Effect("managed policies: the most that the session may do"),
    "PolicyArns.arn": Effect("the policy"),
    "DurationSeconds": Effect("how long the credentials are good"),
    "Tags": Effect("tags of the session, which policies find as aws:PrincipalTag"),
    "Tags.Key": Effect("the tag"),
    "Tags.Value": Effect("its value"),
    "ExternalId": Effect("what the role's trust may ask for (sts:ExternalId)"),
    "TransitiveTagKeys": NotYet("Tags that go on to further sessions"),
    "SerialNumber": NotYet("MFA"),
    "TokenCode": NotYet("MFA"),
    "SourceIdentity": NotYet("A source identity"),
    "ProvidedContexts": NotYet("Contexts of other providers"),
    "MinimumSessionTokenSize": NotYet("A size of tokens"),
}

SERVICE: Final = Service(
    name="sts",
    title="STS",
    parameters=_PARAMETERS,
    # "No permissions are required to perform this operation" [GetCallerIdentity, GetSessionToken].
    rights=Rights(
        names=_names,
        keys=_keys,
        tags=_role_tags,
        guard=_trust,
        acts=_acts,
        free=frozenset({"GetCallerIdentity", "GetSessionToken"}),
    ),
    operations={
        "GetCallerIdentity": reads(get_caller_identity),
        "GetSessionToken": writes(get_session_token),
        "AssumeRole": writes(assume_role),
    },
)
