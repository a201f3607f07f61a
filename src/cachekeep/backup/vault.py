"""Snapshots in a vault: whole or not at all, sealed, and told apart from what was changed.

``snapshots/<id>/<object>`` are boxes (``box.py``), sealed by a data key of the snapshot's own. ``snapshots/<id>/manifest`` is
written last, so a snapshot whose manifest is there is whole. Its first line tells whose it is, and holds the data key, wrapped;
the rest is a box with everything else: sizes and SHA-256 of the objects, and what whoever took it wants to know of it later. So a
vault and the key by which its data keys are wrapped are enough, for any installation, to list and restore everything.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Collection, Iterator
from types import TracebackType
from typing import Final

import msgspec

from cachekeep.backup.box import Packer, Unpacker
from cachekeep.backup.keyring import DataKey, KeyRing
from cachekeep.backup.objects import Objects, Upload
from cachekeep.errors import CachekeepError, Damaged, NotInVault
from cachekeep.model import Secret

_ROOM: Final = "snapshots"
_MANIFEST: Final = "manifest"
_FORM: Final = 1
_ID = re.compile(r"[0-9a-f]{32}")


class StoredObject(msgspec.Struct, frozen=True):
    """One object of a snapshot."""

    bytes: int
    """Of what was put in; ``sha256`` too."""
    sha256: str
    stored_bytes: int
    stored_sha256: str


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that a vault holds, whole."""

    id: str
    cache: str
    name: str
    created_at: dt.datetime
    key: str
    """By which its data key is wrapped; empty: the root key."""
    wrapped: str
    objects: dict[str, StoredObject]
    about: dict[str, object]
    """What whoever took it wants to know of it."""


class Listing(msgspec.Struct, frozen=True):
    """Everything that is in a vault, the oldest first."""

    holdings: tuple[Holding, ...]
    problems: dict[str, str]
    """Id → why that snapshot cannot be read. It was left as it is."""


class _Head(msgspec.Struct, frozen=True):
    form: int
    cache: str
    name: str
    key: str
    wrapped: str


class _Body(msgspec.Struct, frozen=True):
    created_at: dt.datetime
    objects: dict[str, StoredObject]
    about: dict[str, object]


class Vault:
    """``keys`` wraps and unwraps the data keys. Every call may raise ``VaultAway``; where keys are needed, ``Unsealable``."""

    def __init__(self, objects: Objects, keys: KeyRing) -> None:
        self.url = objects.url
        self._objects, self._keys = objects, keys

    @classmethod
    def open(cls, url: str, keys: KeyRing) -> Vault:
        """The vault in a directory (its path, or ``file://``), or at ``s3://``, ``gs://``, ``az://`` (endpoint and credentials as
        the environment says), or ``memory://``. Raises ``InvalidValue`` for any other."""
        return cls(Objects(url), keys)

    def close(self) -> None:
        self._objects.close()

    async def draft(self, cache: str, name: str, *, key: str = "") -> Draft:
        """Begin a snapshot."""
        id = secrets.token_hex(16)
        return Draft(self._objects, id, cache, name, await self._keys.make(_owner(cache, name, id), by=key))

    async def holdings(self) -> Listing:
        found, problems = [], {}
        for id in await self._ids():
            try:
                found.append(await self.find(id))
            except NotInVault:  # deleted meanwhile
                continue
            except (Damaged, CachekeepError) as error:
                problems[id] = str(error)
        return Listing(tuple(sorted(found, key=lambda holding: (holding.created_at, holding.id))), problems)

    async def find(self, id: str) -> Holding:
        """Raises ``NotInVault``, ``Damaged``."""
        if not _ID.fullmatch(id):
            raise NotInVault(f"'{id}' is no id of a snapshot: it has 32 hexadecimal digits")
        line, newline, box = (await self._objects.get(_path(id, _MANIFEST))).partition(b"\n")
        try:
            form = msgspec.json.decode(line)["form"] if newline else None
            if isinstance(form, int) and form > _FORM:
                raise Damaged("a newer Cachekeep wrote it. It was left as it is: upgrade this one")
            head = msgspec.json.decode(line, type=_Head)
            opened = Unpacker(await self._data_key(head, id), _whose(head.key, head.cache, head.name, id, _MANIFEST))
            content = opened.add(box)
            opened.finish()
            body = msgspec.json.decode(content, type=_Body)
        except Damaged as error:
            raise Damaged(f"the manifest of snapshot {id} cannot be used: {error}") from None
        except (msgspec.DecodeError, TypeError, KeyError, RecursionError):
            raise Damaged(f"the manifest of snapshot {id} is no manifest any more. It was left as it is") from None
        return _holding(id, head, body)

    async def read(self, holding: Holding, name: str) -> AsyncIterator[bytes]:
        """The content of an object, piece by piece: each is as it was put in. Whether it is all is known at the end.

        Raises ``Damaged``, also behind the last piece; ``NotInVault``.
        """
        kept = holding.objects.get(name)
        if kept is None:
            raise NotInVault(f"snapshot {holding.name} of {holding.cache} has no object '{name}'")
        key = await self._data_key(holding, holding.id)
        opened = Unpacker(key, _whose(holding.key, holding.cache, holding.name, holding.id, name))
        plain, stored, count = hashlib.sha256(), hashlib.sha256(), 0
        try:
            async for piece in self._objects.stream(_path(holding.id, name)):
                stored.update(piece)
                if content := opened.add(piece):
                    plain.update(content)
                    count += len(content)
                    yield content
            opened.finish()
            if (count, plain.hexdigest(), stored.hexdigest()) != (kept.bytes, kept.sha256, kept.stored_sha256):
                raise Damaged("it is another than its manifest tells of")
        except Damaged as error:
            raise Damaged(
                f"{name} of snapshot {holding.name} of {holding.cache} ({holding.id}) is damaged: {error}. It was left as it is: "
                "restore another snapshot"
            ) from None

    async def delete(self, id: str) -> None:
        """The manifest first: from then on there is no such snapshot, whatever comes of the rest."""
        await self._objects.delete(_path(id, _MANIFEST))
        for listed in await self._objects.list(f"{_ROOM}/{id}"):
            await self._objects.delete(listed.path)

    async def sweep(self, *, older_than_seconds: float, now: dt.datetime, spare: Collection[str] = ()) -> int:
        """Remove what was left of snapshots that nobody finished; not of those being made (``spare``). How many there were."""
        ages: dict[str, dt.datetime] = {}
        whole: set[str] = set()
        for listed in await self._objects.list(_ROOM):
            if (parts := _parts(listed.path)) is None:
                continue
            id, name = parts
            ages[id] = max(ages.get(id, listed.modified_at), listed.modified_at)
            if name == _MANIFEST:
                whole.add(id)
        left = [
            id for id, at in ages.items() if id not in whole and id not in spare and (now - at).total_seconds() > older_than_seconds
        ]
        for id in left:
            await self.delete(id)
        return len(left)

    async def _ids(self) -> list[str]:
        found = [_parts(listed.path) for listed in await self._objects.list(_ROOM)]
        return [parts[0] for parts in found if parts is not None and parts[1] == _MANIFEST]

    async def _data_key(self, of: _Head | Holding, id: str) -> bytes:
        return bytes.fromhex((await self._keys.unwrap(of.key, of.wrapped, owner=_owner(of.cache, of.name, id))).value)


class Draft:
    """A snapshot that is being made. It exists once ``commit`` has returned, whole, and not before."""

    def __init__(self, objects: Objects, id: str, cache: str, name: str, key: DataKey) -> None:
        self.id, self.cache, self.name = id, cache, name
        self._objects, self._key = objects, key
        self._kept: dict[str, StoredObject] = {}

    def put(self, name: str) -> ObjectWriter:
        """An object of it, to be used as ``async with draft.put("0001.rdb") as writer: await writer.write(…)``."""
        if name == _MANIFEST or "/" in name or name in self._kept:
            raise ValueError(f"no object of a snapshot can be called '{name}' now")
        return ObjectWriter(self._objects, _path(self.id, name), self._key.key, self._whose(name), self._kept, name)

    async def commit(self, *, created_at: dt.datetime, about: dict[str, object]) -> Holding:
        """Write the manifest. ``about`` is whatever JSON can say."""
        body = _Body(created_at, dict(self._kept), about)
        packer = Packer(bytes.fromhex(self._key.key.value), self._whose(_MANIFEST))
        content = packer.head + packer.add(msgspec.json.encode(body)) + packer.finish()
        head = _Head(_FORM, self.cache, self.name, self._key.by, self._key.wrapped)
        await self._objects.put(_path(self.id, _MANIFEST), msgspec.json.encode(head) + b"\n" + content)
        return _holding(self.id, head, body)

    async def abandon(self) -> None:
        """Remove what has been put so far."""
        for name in self._kept:
            await self._objects.delete(_path(self.id, name))

    def _whose(self, name: str) -> tuple[str, ...]:
        return _whose(self._key.by, self.cache, self.name, self.id, name)


class ObjectWriter:
    """Puts one object into a draft. If its block ends with an error, nothing is put."""

    def __init__(
        self, objects: Objects, path: str, key: Secret, whose: tuple[str, ...], kept: dict[str, StoredObject], name: str
    ) -> None:
        self._objects, self._path, self._key, self._whose, self._all, self._name = objects, path, key, whose, kept, name
        self._plain, self._stored = hashlib.sha256(), hashlib.sha256()
        self._bytes = self._stored_bytes = 0
        self._upload: Upload

    async def __aenter__(self) -> ObjectWriter:
        self._upload = self._objects.upload(self._path, self._packed)
        return self

    async def write(self, data: bytes) -> None:
        await self._upload.write(data)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            await self._upload.abandon()
            return
        try:
            await self._upload.finish()
        except BaseException:
            with contextlib.suppress(CachekeepError):
                await self._upload.abandon()
            raise
        self._all[self._name] = StoredObject(self._bytes, self._plain.hexdigest(), self._stored_bytes, self._stored.hexdigest())

    def _packed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        packer = Packer(bytes.fromhex(self._key.value), self._whose)
        yield self._counted(packer.head)
        for piece in pieces:
            self._plain.update(piece)
            self._bytes += len(piece)
            if made := packer.add(piece):
                yield self._counted(made)
        yield self._counted(packer.finish())

    def _counted(self, made: bytes) -> bytes:
        self._stored.update(made)
        self._stored_bytes += len(made)
        return made


def _path(id: str, name: str) -> str:
    return f"{_ROOM}/{id}/{name}"


def _parts(path: str) -> tuple[str, str] | None:
    """The id of a snapshot, and the name of an object of it; None: somebody else has put it there."""
    _, _, rest = path.partition("/")
    id, _, name = rest.partition("/")
    return (id, name) if _ID.fullmatch(id) and name and "/" not in name else None


def _owner(cache: str, name: str, id: str) -> str:
    return json.dumps([cache, name, id])


def _whose(key: str, cache: str, name: str, id: str, of: str) -> tuple[str, ...]:
    return (key, cache, name, id, of)


def _holding(id: str, head: _Head, body: _Body) -> Holding:
    return Holding(
        id=id,
        cache=head.cache,
        name=head.name,
        created_at=body.created_at,
        key=head.key,
        wrapped=head.wrapped,
        objects=body.objects,
        about=body.about,
    )
