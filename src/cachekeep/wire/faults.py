"""Errors as each protocol writes them, and the internal error of a body that cannot be read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape

import cbor2

from cachekeep.errors import CachekeepError
from cachekeep.wire.model import Protocol, ServiceModel


class ApiError(CachekeepError):
    """A request is refused. Becomes an AWS-shaped fault on the wire.

    ``code`` is the wire code (``CacheClusterNotFound``), or the name of the model's exception shape; the gateway takes the HTTP
    status from the service model and falls back to ``status`` for codes common to all services (``InvalidAction``…).
    """

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


class Malformed(ValueError):
    """A request's text does not have the form its shape asks for. ``path`` leads to the place, outermost name first."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.path: list[str] = []

    def inside(self, name: str) -> Malformed:
        """The same error, one level further out."""
        self.path.insert(0, name)
        return self


@dataclass(frozen=True, slots=True)
class Fault:
    """An error ready for the wire. ``code`` is the query protocols' text, ``name`` the shape name that the others send."""

    code: str
    name: str
    message: str
    status: int

    @property
    def party(self) -> str:
        return "Sender" if self.status < 500 else "Receiver"


def resolve(error: ApiError, model: ServiceModel | None) -> Fault:
    """The fault of an ApiError: code and status from the model where it lists the code or the shape's name."""
    known = model.faults.get(error.code) if model else None
    if known is None:
        return Fault(error.code, error.code, error.message, error.status)
    return Fault(known.code, known.name, error.message, known.status)


# What a service that speaks JSON or CBOR calls the errors that are common to all services, and their status there
# (AWS "Common errors": the query services answer 403 to bad credentials, the JSON services 400).
_RPC_NAMES = {
    "MissingAuthenticationToken": ("MissingAuthenticationTokenException", 400),
    "IncompleteSignature": ("IncompleteSignatureException", 400),
    "InvalidClientTokenId": ("UnrecognizedClientException", 400),
    "SignatureDoesNotMatch": ("InvalidSignatureException", 400),
    "ExpiredToken": ("ExpiredTokenException", 400),
    "InvalidAction": ("UnknownOperationException", 400),
    "MissingAction": ("UnknownOperationException", 400),
}


def write(fault: Fault, protocol: Protocol, model: ServiceModel | None, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Status, protocol headers and body of a fault."""
    if protocol in ("query", "ec2"):
        return fault.status, {"content-type": "text/xml;charset=UTF-8"}, _xml(fault, protocol, model, request_id)
    name, status = _RPC_NAMES.get(fault.code, (fault.name, fault.status))
    headers = {"x-amzn-errortype": header_safe(name)}
    if model and model.query_compatible:
        headers["x-amzn-query-error"] = f"{header_safe(fault.code)};{fault.party}"
    body = {"__type": name, "message": fault.message}
    if protocol == "json":
        version = model.json_version if model else "1.1"
        return status, headers | {"content-type": f"application/x-amz-json-{version}"}, json.dumps(body).encode()
    text = {key: value.encode(errors="replace").decode() for key, value in body.items()}
    headers |= {"content-type": "application/cbor", "smithy-protocol": "rpc-v2-cbor"}
    return status, headers, cbor2.dumps(text)


def header_safe(text: str) -> str:
    """``text`` with everything that does not belong in a header value taken out."""
    return "".join(char for char in text if 32 < ord(char) < 127 and char != ";")[:200]


def xml_text(text: str) -> str:
    """``text`` escaped, with what XML 1.0 cannot carry replaced (section 2.2)."""
    return escape(text.translate(XML_UNSAFE), quote=False).replace("\r", "&#13;")


XML_UNSAFE = {code: 0xFFFD for code in range(32) if code not in (9, 10, 13)}
XML_UNSAFE |= dict.fromkeys((65534, 65535, *range(55296, 57344)), 65533)


def _xml(fault: Fault, protocol: Protocol, model: ServiceModel | None, request_id: str) -> bytes:
    code, message = xml_text(fault.code), xml_text(fault.message)
    if protocol == "ec2":
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
            f"<RequestID>{request_id}</RequestID></Response>"
        )
    else:
        namespace = f' xmlns="{model.xml_namespace}"' if model and model.xml_namespace else ""
        text = (
            f"<ErrorResponse{namespace}><Error><Type>{fault.party}</Type><Code>{code}</Code>"
            f"<Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
        )
    return text.encode()
