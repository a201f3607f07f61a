"""Values of Django's cache as bytes, without pickle, and exactly: what comes out equals what went in, or it is refused.

Integers are stored as decimal text, so the server can increment them. Everything else is MessagePack; tuples, sets,
dates, Decimal, UUID, SafeString and rendered responses are extensions of it (exact.py). A lazy text is stored as the text
it is now, a member of TextChoices or IntegerChoices as its value, which equals it. Model instances are refused unless the
cache was made for them: a cached row is no less old than any cached value, and saving one would write it back.
"""

from __future__ import annotations

import enum
from typing import Any

from django.apps import apps
from django.db.models import DEFERRED, Model
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.functional import Promise
from django.utils.safestring import SafeString

from ...errors import Uncodable
from ...exact import Exact, Extension

_PACKED = b"\x01"


def _response_parts(response: HttpResponse) -> list[Any]:
    return [
        response.status_code,
        response.reason_phrase,
        [[name, value] for name, value in response.headers.items()],
        [morsel.OutputString() for morsel in response.cookies.values()],
        response.content,
    ]


def _response(parts: list[Any]) -> HttpResponse:
    status, reason, headers, cookies, content = parts
    response = HttpResponse(content, status=status, reason=reason, headers=dict(headers))
    for cookie in cookies:
        response.cookies.load(cookie)
    return response


def _model_parts(instance: Model) -> list[Any]:
    fields = {field.attname: instance.__dict__.get(field.attname, DEFERRED) for field in instance._meta.concrete_fields}
    return [
        instance._meta.label,
        instance._state.db,
        instance._state.adding,
        {name: value for name, value in fields.items() if value is not DEFERRED},
    ]


def _model(parts: list[Any]) -> Model:
    label, database, adding, fields = parts
    model = apps.get_model(label)
    known = [field.attname for field in model._meta.concrete_fields]
    if unknown := set(fields) - set(known):
        raise ValueError(f"{label} has no field {', '.join(sorted(unknown))} any more")
    instance: Model = model.from_db(database, [name for name in known if name in fields], [fields[n] for n in known if n in fields])
    instance._state.adding = adding
    return instance


class DjangoCodec(Exact):
    """``models``: also model instances, as the values of their own fields (what was prefetched is not kept)."""

    def __init__(self, *, models: bool = False) -> None:
        super().__init__(
            Extension(10, SafeString, lambda value: str(value) + "", SafeString),
            Extension(11, HttpResponse, _response_parts, _response),
            Extension(13, Model, _model_parts, _model),
        )
        self._models = models

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Promise):
            value = str(value)
        elif isinstance(value, enum.Enum) and isinstance(value, (str, int)):
            value = value.value
        elif isinstance(value, HttpResponseBase) and not value.streaming and type(value) is not HttpResponse:
            return self._extended(self._by_kind[HttpResponse], value)
        elif isinstance(value, Model) and self._models:
            return self._extended(self._by_kind[Model], value)
        return super()._plain(value)

    def store(self, value: Any) -> bytes:
        """Raises TypeError for what is not plain data."""
        if isinstance(value, enum.Enum) and isinstance(value, int):
            value = value.value
        if type(value) is int and -(2**63) <= value < 2**63:
            return b"%d" % value
        try:
            return _PACKED + self.encode(value, "")
        except Uncodable as error:
            raise TypeError(str(error)) from error

    def read(self, stored: bytes) -> Any:
        """Raises ValueError for bytes that this module did not write."""
        if stored[:1] != _PACKED:
            return int(stored)
        try:
            return self.decode(stored[1:], "")
        except Uncodable as error:
            raise ValueError(str(error)) from error


_usual = DjangoCodec()
encode, decode = _usual.store, _usual.read
