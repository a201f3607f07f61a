"""Who may do what. Every operation of every service passes here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from cachekeep.model import IamGroup, IamRole, IamSession, IamUser, ManagedPolicy
from cachekeep.security.policy.evaluate import AccessRequest, Attached, Subject, Verdict, evaluate
from cachekeep.security.policy.parse import parse
from cachekeep.security.policy.readymade import READY_MADE
from cachekeep.security.policy.tree import Kind, PolicyDocument
from cachekeep.services.core import rights
from cachekeep.services.core.callers import Caller, identify, role_arn, session_arn, user_arn
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Service
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

_WHOLE_SECOND: Final = "%Y-%m-%dT%H:%M:%SZ"
_WHAT: Mapping[Kind, str] = {
    "identity": "identity-based policy",
    "resource": "resource-based policy",
    "boundary": "permissions boundary",
    "session": "session policy",
}


async def authorise(call: Call, service: Service, tx: Transaction, context: Context) -> Call:
    """Let a call pass to its handler, in the handler's own transaction, as whoever asks. The account's root may do everything.

    Raises ApiError AccessDenied, in the same words whether there is such a resource or not, or InvalidClientTokenId.
    """
    call, caller = await identify(call, tx, context.settings.issuer)
    if service.title:
        named = rights.resources(call, service.rights, context.settings)
        call.seen.resources = tuple([await service.rights.resolve(tx, arn) for arn in named])
    if caller is None:
        return call
    if caller.session is not None:
        _hold_to_session(call, caller, caller.session)
    if call.operation in service.rights.free:
        return call
    if not service.title:
        raise ApiError("AccessDenied", "Only the account's root, whose key `cachekeep env` prints, may ask this.", status=403)
    subject = subject_of(caller, call.principal.account)
    policies = await policies_of(caller.who, tx, caller.session)
    general = {**of_caller(caller, subject), **_of_request(call), **rights.tags_of_request(call)}
    general |= {key.lower(): [value] for key, value in service.rights.keys(call, context.settings).items()}
    for action in rights.actions(call, service.rights):
        for resource in call.seen.resources:
            tags = await service.rights.tags(tx, resource) if resource != "*" else {}
            keys = ("aws", service.name)  # ec2:ResourceTag/… is another name of aws:ResourceTag/…
            values = {**general, **{f"{of}:resourcetag/{key.lower()}": [value] for of in keys for key, value in tags.items()}}
            guard = await service.rights.guard(tx, resource)
            verdict = _decided(AccessRequest(action, resource, subject, values), policies, guard, caller)
            if not verdict.allowed:
                raise ApiError(service.rights.denied, denial(subject.arn, action, resource, verdict), status=403)
    return call


def _decided(request: AccessRequest, policies: Sequence[Attached], guard: rights.Guard | None, caller: Caller) -> Verdict:
    """A resource with a guard must be opened by that, too: beside a role's trust or a key's policy, those of whoever asks are not
    enough [IAM User Guide, "Policy evaluation logic", on role trust policies and KMS key policies]."""
    if guard is None:
        return evaluate(request, policies)
    names = {request.subject.arn, request.subject.role_arn}
    if any(arn in names and each != caller.who.id for arn, each in guard.ids.items()):
        return Verdict(False, "resource", False, ())  # it names one who is gone, and had that name before
    verdict = evaluate(request, [*policies, Attached("resource", "guard", _parsed(guard.text, "resource", placed=guard.placed))])
    if verdict.allowed and not any(policy.kind == "resource" for policy in verdict.matched):
        return Verdict(False, "resource", False, ())
    return verdict


_OF_SESSIONS_OF_USERS: Final = frozenset({"AssumeRole", "GetCallerIdentity"})


def _hold_to_session(call: Call, caller: Caller, session: IamSession) -> None:
    """What temporary credentials do not open [STS API Reference, GetSessionToken; IAM User Guide, "Compare AWS STS credentials"].
    Raises ApiError AccessDenied."""
    if call.service == "sts" and call.operation == "GetSessionToken":
        raise ApiError("AccessDenied", "Cannot call GetSessionToken with session credentials", status=403)
    beyond = call.service == "iam" or (call.service == "sts" and call.operation not in _OF_SESSIONS_OF_USERS)
    if session.kind == "user" and beyond:
        arn = user_arn(call.principal.account, caller.who) if isinstance(caller.who, IamUser) else ""
        text = f"User: {arn} may not call {call.service}:{call.operation} with a session token that was made without MFA"
        raise ApiError("AccessDenied", text, status=403)


def subject_of(caller: Caller, account: str) -> Subject:
    """As policies name who asks."""
    if isinstance(caller.who, IamUser):
        return Subject(user_arn(account, caller.who), account)
    role = role_arn(account, caller.who)
    return Subject(session_arn(account, caller.who, caller.session), account, role) if caller.session else Subject(role, account)


async def policies_of(who: IamUser | IamGroup | IamRole, tx: Transaction, session: IamSession | None = None) -> list[Attached]:
    """All that say what somebody may do: a user's groups do so, too, and what ends it is a boundary or a session's policies."""
    found = await _own(who, tx)
    for name in who.groups if isinstance(who, IamUser) else ():
        if (group := await tx.get(IamGroup, name)) is not None:
            found += await _own(group, tx)
    if not isinstance(who, IamGroup) and who.boundary:
        found.append(await _managed("boundary", who.boundary, tx))
    if session is not None:
        found += [Attached("session", "session", _parsed(text)) for text in session.policies]
        found += [await _managed("session", arn, tx) for arn in session.attached]
    return found


async def _own(who: IamUser | IamGroup | IamRole, tx: Transaction) -> list[Attached]:
    found = [Attached("identity", name, _parsed(text)) for name, text in who.inline.items()]
    return found + [await _managed("identity", arn, tx) for arn in who.attached]


async def _managed(kind: Kind, arn: str, tx: Transaction) -> Attached:
    """One that is gone allows nothing."""
    text = await text_of(tx, arn)
    return Attached(kind, arn.rpartition("/")[2], _parsed(text) if text is not None else PolicyDocument(()))


async def text_of(tx: Transaction, arn: str) -> str | None:
    """What a managed policy says now; None: there is none."""
    if arn in READY_MADE:
        return READY_MADE[arn]
    policy = await tx.get(ManagedPolicy, arn.rpartition("/")[2].lower())
    return policy.texts[policy.default].text if policy is not None and arn.endswith(f":policy/{policy.policy_name}") else None


@lru_cache(maxsize=4096)
def _parsed(text: str, kind: Kind = "identity", *, placed: bool = False) -> PolicyDocument:
    """It could be parsed when it was stored."""
    return parse(text, kind, at_resource=placed)


def of_caller(caller: Caller, subject: Subject) -> Mapping[str, Sequence[str]]:
    """Who asks [AWS global condition context keys, "Properties of the principal", "… of a role session"]."""
    who, session = caller.who, caller.session
    role = isinstance(who, IamRole)
    tags = {**who.tags, **(session.tags if session else {})}
    found = {
        "aws:userid": f"{who.id}:{session.session_name}" if role and session else who.id,
        "aws:principalarn": subject.role_arn or subject.arn,
        "aws:principalaccount": subject.account,
        "aws:principaltype": "AssumedRole" if role else "User",
        "aws:principalisawsservice": "false",
        **{f"aws:principaltag/{key.lower()}": value for key, value in tags.items()},
    }
    if isinstance(who, IamUser):
        found["aws:username"] = who.user_name
    if session is not None:
        found |= {"aws:tokenissuetime": session.began_at.strftime(_WHOLE_SECOND), "aws:multifactorauthpresent": "false"}
    return {key: [value] for key, value in found.items()}


def _of_request(call: Call) -> Mapping[str, Sequence[str]]:
    """From where, and when [the same page, "Properties of the network", "… of the request"]."""
    at = call.received_at
    found = {
        "aws:resourceaccount": call.principal.account,
        "aws:requestedregion": call.region,
        "aws:currenttime": at.strftime(_WHOLE_SECOND),
        "aws:epochtime": str(int(at.timestamp())),
        "aws:securetransport": "true" if call.encrypted else "false",
        "aws:viaawsservice": "false",
        **({"aws:sourceip": call.source_ip} if call.source_ip else {}),
    }
    return {key: [value] for key, value in found.items()}


def denial(arn: str, action: str, resource: str, verdict: Verdict) -> str:
    """AWS's own words ["Troubleshoot access denied error messages"]."""
    what = _WHAT[verdict.by]
    article = "an" if what[0] in "aeiou" else "a"
    denied, missing = f"with an explicit deny in {article} {what}", f"because no {what} allows the {action} action"
    because = denied if verdict.explicit else missing
    return f"User: {arn} is not authorized to perform: {action} on resource: {resource} {because}"
