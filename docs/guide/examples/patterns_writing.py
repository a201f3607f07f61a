"""Commits and the cache, kept together by an outbox, over SQLite. Usage: patterns_writing.py [URL]"""

from __future__ import annotations

import os
import sys

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from cachekeep_patterns import Cache, connect
from cachekeep_patterns.database import Outbox, QueryCache

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CACHE_URL", "valkey://127.0.0.1:6379")
cache = Cache(connect(url), namespace=f"example-{os.getpid()}")
engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


outbox = Outbox(cache, Base.metadata)
outbox.watch(User, lambda user: [f"user:{user.id}"])
make_session = sessionmaker(engine)
outbox.attach(make_session)
Base.metadata.create_all(engine)
queries = QueryCache(cache, engine)


def name() -> str:
    with make_session() as session:
        return session.get_one(User, 7).name


with make_session.begin() as session:
    session.add(User(id=7, name="Ada"))
print("loaded:", cache.get("user:7", name), queries.rows(sa.select(User.name)))
with make_session.begin() as session:
    session.get_one(User, 7).name = "Grace"
print("after the commit:", cache.get("user:7", name), queries.rows(sa.select(User.name)))
with cache.writing("user:7") as write:
    write.publish("user:7", "Emmy")
print("written through by hand:", cache.get("user:7", name), "-", write.outcome.name)


@cache.cached(key="name-of:{user_id}", tags=["names"])
def name_of(user_id: int) -> str:
    print("  (loaded)")
    with make_session() as session:
        return session.get_one(User, user_id).name


def rename(user_id: int, new: str) -> str:
    with make_session.begin() as session:
        session.get_one(User, user_id).name = new
    return new


name_of.write(lambda: rename(7, "Hedy"), 7)
print("written through its function:", name_of(7))
print("left for the sweep:", outbox.sweep(engine))
