"""What type checkers take, with the types they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from cachekeep_patterns import AsyncCache, Cache, MemoryStore, Policy, Trouble


@dataclass
class User:
    name: str


def say(trouble: Trouble) -> None:
    print(trouble.what, trouble.advice)


cache = Cache(MemoryStore(), namespace="shop", policy=Policy(fresh_seconds=3), on_trouble=say)
later = AsyncCache(MemoryStore())


@cache.cached(key="user:{user_id}", tags=["users"], version=2)
def user(user_id: int, verbose: bool = False) -> User:
    return User(str(user_id))


class Shop:
    @cache.cached(key="{self}:{item}")
    def price(self, item: str) -> float:
        return 1.0

    @later.cached(key="{self}:{item}")
    async def stock(self, item: str) -> int:
        return 1


assert_type(user(7), User)
assert_type(user(user_id=7, verbose=True), User)
assert_type(user.key(7), str)
assert_type(user.refresh(7), User)
assert_type(Shop().price("tea"), float)
assert_type(cache.get("k", lambda: User("Ada")), User)
assert_type(cache.get_many(["a"], lambda names: dict.fromkeys(names, 1)), dict[str, int | None])
assert_type(cache.incr("n"), int)
Shop().price.invalidate("tea")


async def main() -> None:
    assert_type(await Shop().stock("tea"), int)
    assert_type(await Shop().stock.refresh("tea"), int)
    assert_type(await later.exists("k"), bool)
