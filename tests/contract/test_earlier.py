"""What earlier versions have decided is known to this one: from rows of both databases, and from the journal."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine
from tests.plan.builders import MOMENT, NOW, gone, group, healthy, running

from cachekeep.clock import SystemClock
from cachekeep.engines.users import credential_of
from cachekeep.model import Conversion, Decide, Decided, Election, Halted, Resharded, Secret, Shard, Spoilt, Starved, Starving, Wait
from cachekeep.plan import Policy, plan
from cachekeep.plan.invariants import check
from cachekeep.plan.reach import followers
from cachekeep.plan.situation import Situation
from cachekeep.store import SqlStore, migrations
from cachekeep.store.earlier import one_change_at_a_time
from cachekeep.store.journal import FileDisk, Journal

ROWS = [json.loads(line) for line in (Path(__file__).parent / "decided_0003.jsonl").read_text().splitlines()]
"""As keepers of revision 0003 wrote them, in the simulator: every combination of flags that was seen in 110 seeds."""
WANTED = '{"engine":"valkey","version":"8.0.1","node_type":"cache.t3.micro","port":6379,"shards":[]}'
Json = dict[str, Any]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state.db"
        return
    server: str = request.getfixturevalue("postgres_url")
    connection = await asyncpg.connect(server)
    await connection.execute("create database earlier")
    yield server.replace("/cachekeep?", "/earlier?")
    await connection.execute("drop database earlier")
    await connection.close()


async def upgraded(url: str, rows: list[Json]) -> list[Decided]:
    """These rows of revision 0003, as this version reads them."""

    def before(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        insert = "insert into caches values (:uid, 'group', :uid, 'us-east-1', 0, 'hush', 1, :wanted, :decided)"
        values = [{"uid": f"u{i}", "wanted": WANTED, "decided": json.dumps(row)} for i, row in enumerate(rows)]
        connection.execute(sa.text(insert), values)

    if url.startswith("sqlite"):
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            before(connection)
        engine.dispose()
    else:
        server = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
        async with server.begin() as session:
            await session.run_sync(before)
        await server.dispose()
    store = SqlStore(url, SystemClock(), seal=lambda uid, text: credential_of(1, Secret(text), "sealed"))
    await store.open()
    found = [await store.load(f"u{i}") for i in range(len(rows))]
    await store.aclose()
    return [cache.decided for cache in found if cache is not None]


async def kept(path: Path, row: Json) -> Decided:
    """This decision of a journal of then, as this version reads it."""
    lease = {"uid": "u1", "holder": "before", "epoch": 1}
    payload = json.dumps({"type": "kept", "entry": {"lease": lease, "decided": row, "addresses": [], "events": []}}).encode()
    header = struct.pack(">4sQII", b"CKJ1", 1, len(payload), zlib.crc32(payload, zlib.crc32((1).to_bytes(8, "big"))))
    path.write_bytes(header + payload)
    journal = Journal(FileDisk(path), half_bytes=1 << 16)
    await journal.open()
    await journal.aclose()
    assert not journal.damage
    return journal.entries["u1"].decided


def says_the_same(old: Json, new: Decided) -> None:
    assert check(new) == ()
    clustered = bool(old["nodes"]) and old["nodes"][0]["engine"] != "memcached" and not old["shards"][0]["primary_address"]
    assert new.mode == ("enabled" if clustered else "disabled")
    assert [n.name for n in new.successors] == [n["name"] for n in old["successors"]]
    assert [n.name for n in new.retired] == [n["name"] for n in old["retired"]]
    assert list(new.preparing.other_databases) == old["other_databases"]
    assert new.preparing.confirmed.nodes == frozenset(old["confirmed"]["nodes"] if old["successors"] else ())
    assert new.resharding == old["resharding"]
    if isinstance(new.reshard, Resharded):
        assert msgspec.to_builtins(new.reshard.since) == old["resharded_at"]
    assert (new.reshard is None) == (not old["resharding"] and old["resharded_at"] is None)
    for was, shard in zip(old["shards"], new.shards, strict=True):
        change = shard.change
        assert (shard.predecessor and shard.predecessor.name) == was["led_before"]
        assert shard.moving_to == (None if was["starving"] else was["moving_to"])
        assert shard.lost == was["recovering_from"]
        assert (isinstance(change, Election) and change.seize) == was["seize"]
        assert isinstance(change, Starving) == was["starving"]
        assert isinstance(change, Conversion) == (was["moving_to"] in {n["name"] for n in old["successors"]})
        if isinstance(change, Conversion | Election):
            assert msgspec.to_builtins(change.since) == was["ordered_at"]
        elif isinstance(change, Starving):
            assert msgspec.to_builtins(change.since) == was["starved_since"]
    for was, node in zip([*old["nodes"], *old["successors"], *old["retired"]], new.everyone, strict=True):
        assert node.condemned == was["condemned"]
        assert isinstance(node.fate, Starved) == was["starved"]
        if not isinstance(node.fate, Starved):
            assert msgspec.to_builtins(getattr(node.fate, "since", None)) == was["condemned_at"]
        assert isinstance(node.fate, Spoilt) == (node in new.successors and was["condemned_at"] is not None)
        assert isinstance(node.fate, Halted) == (was["condemned"] and was["condemned_at"] is None)


async def test_rows_of_the_version_before_say_the_same(url: str) -> None:
    for old, new in zip(ROWS, await upgraded(url, ROWS), strict=True):
        says_the_same(old, new)


async def test_what_the_journal_of_the_version_before_kept_says_the_same(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        says_the_same(row, await kept(tmp_path / str(number), row))


# -- before it was known of which lead somebody was in sync


def older() -> Json:
    """Of the same group, before leads were told apart: ``in_sync`` of a shard, ``fed`` of successors."""
    row: Json = msgspec.to_builtins(group().decided, enc_hook=str)
    (shard,) = row["shards"]
    for name in ("lead_order", "confirmed", "ended", "change", "predecessor"):
        del shard[name]
    row |= {"fed": ["x"], "shards": [shard], "successors": [row["nodes"][0] | {"name": "x", "in_place_of": "demo-001"}]}
    for name in ("mode", "switch", "reshard"):
        del row[name]
    shard |= {"order": 4, "in_sync": ["demo-002", "demo-003"], "moving_to": None, "recovering_from": None}
    return row


async def from_row(tmp_path: Path, row: Json) -> Decided:
    (found,) = await upgraded(f"sqlite:///{tmp_path}/state.db", [row])
    return found


async def from_journal(tmp_path: Path, row: Json) -> Decided:
    return await kept(tmp_path / "journal", row)


Source = Callable[[Path, Json], Any]
sources = pytest.mark.parametrize("source", [from_row, from_journal])


@sources
async def test_who_was_in_sync_once_is_in_sync_again_when_the_primary_says_so(tmp_path: Path, source: Source) -> None:
    decided = await source(tmp_path, older())
    (shard,) = decided.shards
    assert (shard.lead_order, shard.in_sync, decided.fed) == (4, frozenset(), frozenset())
    assert shard.confirmed.nodes == {"demo-002", "demo-003"}
    assert decided.preparing.confirmed.nodes == {"x"}
    cache = msgspec.structs.replace(group(), decided=decided)
    answer = plan(cache, healthy(group()), NOW, MOMENT)
    assert isinstance(answer, Decide)
    assert answer.because == "demo-002 and demo-003 are in sync"


@sources
async def test_who_was_in_sync_once_is_not_emptied(tmp_path: Path, source: Source) -> None:
    cache = msgspec.structs.replace(group(), decided=await source(tmp_path, older()))
    empty = running(group(), "demo-001", has_history=False, replicas=())
    view = healthy(group(), demo_001=empty, demo_002=running(group(), "demo-002", follows=None, link_up=None))
    answer = followers.follow(Situation(cache, view, NOW, MOMENT, Policy()))
    assert isinstance(answer, Wait)
    assert answer.reason == "empty"
    assert "demo-002 holds data: it is not told to follow" in answer.because


@sources
async def test_what_was_refused_in_a_sentence_is_told_once_more_as_a_value(tmp_path: Path, source: Source) -> None:
    row = older() | {"refusal": "demo-001 is gone, and demo-002 cannot be shown to have all of it"}
    cache = msgspec.structs.replace(group(), decided=await source(tmp_path, row))
    view = healthy(group(), demo_001=gone(said=()), demo_002=running(cache, "demo-002"), demo_003=gone())
    told = []
    while isinstance(answer := plan(cache, view, NOW, MOMENT), Decide):
        told += answer.events
        cache = msgspec.structs.replace(cache, decided=answer.decided)
    assert [(r.lost, r.best, r.doubt) for r in cache.decided.refusals] == [("demo-001", "demo-002", "unheard")]
    assert len([e for e in told if "--allow-data-loss" in e.message]) == 1


def test_a_lead_by_a_move_under_way_was_by_the_order_before() -> None:
    row = older()
    row["shards"][0]["moving_to"] = "demo-002"
    one_change_at_a_time(row)
    shard = msgspec.convert(row["shards"][0], Shard)
    assert (shard.lead_order, shard.moving_to) == (3, "demo-002")
