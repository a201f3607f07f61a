"""Who may do what. Every operation of every service passes here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from cachekeep.model import IamUser
from cachekeep.security.policy.evaluate import AccessRequest, Attached, Subject, Verdict, evaluate
from cachekeep.security.policy.parse import parse
from cachekeep.security.policy.readymade import READY_MADE
from cachekeep.security.policy.tree import Kind, PolicyDocument
from cachekeep.services.core import rights
from cachekeep.services.core.callers import identify
from cachekeep.services.core.context import Context
from cachekeep.services.core.operation import Service
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

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
    call, user = await identify(call, tx)
    if service.title:
        call.seen.resources = tuple(rights.resources(call, service.rights, context.settings))
    if user is None or call.operation in service.rights.free:
        return call
    if not service.title:
        raise ApiError("AccessDenied", "Only the account's root, whose key `cachekeep env` prints, may ask this.", status=403)
    subject = Subject(call.principal.arn, call.principal.account)
    action, policies = f"{call.service}:{call.operation}", policies_of(user)
    general = {**of_user(user, subject), **_of_request(call), **rights.tags_of_request(call)}
    general |= {key.lower(): [value] for key, value in service.rights.keys(call, context.settings).items()}
    for resource in call.seen.resources:
        tags = await service.rights.tags(tx, resource) if resource != "*" else {}
        keys = ("aws", service.name)  # ec2:ResourceTag/… is another name of aws:ResourceTag/…
        values = {**general, **{f"{of}:resourcetag/{key.lower()}": [value] for of in keys for key, value in tags.items()}}
        verdict = evaluate(AccessRequest(action, resource, subject, values), policies)
        if not verdict.allowed:
            raise ApiError(service.rights.denied, denial(subject.arn, action, resource, verdict), status=403)
    return call


def policies_of(user: IamUser) -> list[Attached]:
    """All that say what a user may do."""
    attached = [Attached("identity", name, _parsed(text)) for name, text in user.inline.items()]
    attached += [Attached("identity", arn.rpartition("/")[2], _parsed(READY_MADE[arn])) for arn in user.attached]
    if user.boundary:
        attached.append(Attached("boundary", user.boundary.rpartition("/")[2], _parsed(READY_MADE[user.boundary])))
    return attached


@lru_cache(maxsize=4096)
def _parsed(text: str) -> PolicyDocument:
    """It could be parsed when it was stored."""
    return parse(text, "identity")


def of_user(user: IamUser, subject: Subject) -> Mapping[str, Sequence[str]]:
    """Who asks [AWS global condition context keys, "Properties of the principal"]."""
    found = {
        "aws:username": user.user_name,
        "aws:userid": user.id,
        "aws:principalarn": subject.arn,
        "aws:principalaccount": subject.account,
        "aws:principaltype": "User",
        "aws:principalisawsservice": "false",
        **{f"aws:principaltag/{key.lower()}": value for key, value in user.tags.items()},
    }
    return {key: [value] for key, value in found.items()}


def _of_request(call: Call) -> Mapping[str, Sequence[str]]:
    """From where, and when [the same page, "Properties of the network", "… of the request"]."""
    at = call.received_at
    found = {
        "aws:resourceaccount": call.principal.account,
        "aws:requestedregion": call.region,
        "aws:currenttime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "aws:epochtime": str(int(at.timestamp())),
        "aws:securetransport": "false",
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
