"""What type checkers refuse: each ignored error is one that there must be (--warn-unused-ignores)."""

from __future__ import annotations

from cachekeep_patterns import AsyncCache, Cache, MemoryStore, NearCache, Policy

cache = Cache(MemoryStore(), name_space="shop")  # type: ignore[call-arg]
near = NearCache(None, max_entires=3)  # type: ignore[call-arg]
policy = Policy(fresh=3)  # type: ignore[call-arg]
later = AsyncCache(MemoryStore())


@cache.cached(key="user:{user_id}")
def user(user_id: int) -> str:
    return str(user_id)


class Shop:
    @cache.cached(key="{self}:{item}")
    def price(self, item: str) -> float:
        return 1.0


@cache.cached(ttl=3)  # type: ignore[call-arg]
def other(user_id: int) -> str:
    return ""


@later.cached()  # type: ignore[arg-type]
def blocking(user_id: int) -> str:
    return ""


number: int = user(7)  # type: ignore[assignment]
user("7")  # type: ignore[arg-type]
user(7, 8)  # type: ignore[call-arg]
user.invalidate("7")  # type: ignore[arg-type]
Shop().price(3)  # type: ignore[arg-type]
text: str = Shop().price("tea")  # type: ignore[assignment]
cache.get("k", lambda: 1, codec="msgpack")  # type: ignore[call-overload]
cache.set(7, 1)  # type: ignore[arg-type]
