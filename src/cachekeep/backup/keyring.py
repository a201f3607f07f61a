"""Who keeps the keys of a vault: each snapshot has a data key of its own, which lies beside it, wrapped by a key that does not."""

from __future__ import annotations

import secrets
from typing import NamedTuple, Protocol

from cachekeep.backup.box import KEY_BYTES
from cachekeep.errors import Unsealable
from cachekeep.model import Secret
from cachekeep.security.sealing import Sealing

_PURPOSE = "data key"


class DataKey(NamedTuple):
    by: str
    """The name of the key that wrapped it; an ARN, or empty for the root key."""
    wrapped: str
    """Opens nothing by itself: it may lie anywhere."""
    key: Secret
    """Hexadecimal."""


class KeyRing(Protocol):
    """Makes and unwraps data keys. ``owner``: whose it is, which is authenticated with it."""

    async def make(self, owner: str, *, by: str = "") -> DataKey:
        """A new one, wrapped by the key named ``by``. Raises ``Unsealable``."""

    async def unwrap(self, by: str, wrapped: str, *, owner: str) -> Secret:
        """Raises ``Unsealable`` where that key is not there, or did not wrap this, or not for this owner."""


class RootKeyRing:
    """All data keys are wrapped by the installation's root key (decision 44)."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing

    async def make(self, owner: str, *, by: str = "") -> DataKey:
        if by:
            raise Unsealable(f"there is no key {by}: data keys are wrapped by the root key")
        self._sealing.make()
        key = Secret(secrets.token_hex(KEY_BYTES))
        return DataKey("", self._sealing.seal(key, owner=owner, purpose=_PURPOSE), key)

    async def unwrap(self, by: str, wrapped: str, *, owner: str) -> Secret:
        wrapped_by = wrapped.split(".")[1:2]
        if by or wrapped_by != [self._sealing.id]:
            here = f"holds {self._sealing.id}" if self._sealing.id else "is not there"
            named = f"the key {by}" if by else f"the root key {''.join(wrapped_by)}"
            raise Unsealable(
                f"its data key was wrapped by {named}, and {self._sealing.path} {here}. Nothing was changed: "
                "give the file with that root key (--root-key)"
            )
        try:
            return self._sealing.open(wrapped, owner=owner, purpose=_PURPOSE)
        except Unsealable:
            raise Unsealable("its data key is damaged, or another's was put in its place. It was left as it is") from None
