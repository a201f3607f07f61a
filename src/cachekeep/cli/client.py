"""How the other commands reach the control plane of a data directory: requests signed with its own root key."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from cachekeep.cli import data_dir_flag
from cachekeep.clock import SystemClock
from cachekeep.errors import CachekeepError, Unusable, printable
from cachekeep.security.keys import FILE, load_or_make
from cachekeep.security.sigv4 import sign
from cachekeep.settings import CA_FILE, ENDPOINT_FILE, PREFIX, ServedAt, Settings

_PATIENCE_SECONDS = 15.0


class Refused(CachekeepError):
    """The control plane said no."""


def read_endpoint(data_dir: Path) -> ServedAt | None:
    """Where the last control plane of this data directory served."""
    try:
        return msgspec.json.decode((data_dir / ENDPOINT_FILE).read_bytes(), type=ServedAt)
    except (OSError, msgspec.MsgspecError):
        return None


def endpoint_of(settings: Settings, flags: Mapping[str, Any]) -> ServedAt:
    """Where to send requests: what a flag or the environment says, then where the last control plane served, then the default."""
    given = {name for name in ("host", "port", "region") if flags.get(name) is not None or os.environ.get(PREFIX + name.upper())}
    last = read_endpoint(settings.data_dir)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    by_tls = settings.tls or (last is not None and last.url.startswith("https:"))
    url = f"{'https' if by_tls else 'http'}://{host}:{settings.port}"
    if last is None:
        return ServedAt(url, settings.region)
    return ServedAt(url if given & {"host", "port"} else last.url, settings.region if "region" in given else last.region, last.pid)


def call(settings: Settings, question: str, **body: Any) -> Any:
    """Ask the control plane of a data directory. Raises ``Unusable`` when none answers, ``Refused`` when it says no."""
    endpoint = read_endpoint(settings.data_dir)
    if endpoint is None or not (settings.data_dir / FILE).exists():
        raise Unusable(
            f"no control plane has served from {settings.data_dir}. Start one with `cachekeep up{data_dir_flag(settings)}`, "
            "or name another --data-dir."
        )
    key = load_or_make(settings.data_dir)
    text = json.dumps(body).encode()
    where, path = urlsplit(endpoint.url), f"/_cachekeep/{question}"
    headers = {"host": where.netloc, "content-type": "application/json"}
    headers |= sign(
        "POST",
        path,
        headers,
        text,
        access_key=key.access_key,
        secret_key=key.secret_key,
        region=endpoint.region,
        service="cachekeep",
        now=SystemClock().now(),
    )
    connection = _connection(settings, where)
    try:
        connection.request("POST", path, text, headers)
        response = connection.getresponse()
        answer = _printable(json.loads(response.read()))
    except OSError as error:
        raise Unusable(
            f"the control plane at {endpoint.url} does not answer: {error}. Start it with `cachekeep up{data_dir_flag(settings)}`."
        ) from error
    except ValueError as error:
        raise Unusable(f"{endpoint.url} answers, but is no control plane of {settings.data_dir}.") from error
    finally:
        connection.close()
    if response.status != 200:
        raise Refused(f"{answer.get('message', answer)}")
    return answer


def fetch(settings: Settings, path: str, headers: Mapping[str, str]) -> str:
    """What the control plane of a data directory has at a path. Raises ``Unusable`` when none answers, ``Refused`` when it says
    no."""
    endpoint = read_endpoint(settings.data_dir)
    if endpoint is None:
        raise Unusable(f"no control plane has served from {settings.data_dir}.")
    connection = _connection(settings, urlsplit(endpoint.url))
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except OSError as error:
        raise Unusable(f"the control plane at {endpoint.url} does not answer: {error}.") from error
    finally:
        connection.close()
    if response.status != 200:
        raise Refused(printable(text.strip()))
    return text


def published(settings: Settings) -> str:
    """What clients are to trust, PEM; empty: nothing yet. Raises ``Unusable``."""
    path = settings.data_dir / CA_FILE
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}.") from error


def _connection(settings: Settings, where: SplitResult) -> http.client.HTTPConnection:
    """By TLS, only to one that the installation's own authority calls so. Raises ``Unusable``."""
    if where.scheme != "https":
        return http.client.HTTPConnection(where.hostname or "", where.port, timeout=_PATIENCE_SECONDS)
    trusting = ssl.create_default_context(cadata=published(settings))
    return http.client.HTTPSConnection(where.hostname or "", where.port, timeout=_PATIENCE_SECONDS, context=trusting)


def _printable(answer: Any) -> Any:
    """What is in an answer, as a terminal may show it."""
    match answer:
        case str():
            return printable(answer)
        case list():
            return [_printable(each) for each in answer]
        case dict():
            return {printable(name): _printable(each) for name, each in answer.items()}
    return answer
