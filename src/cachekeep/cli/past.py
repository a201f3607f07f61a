"""What a recording can bring back: its timeline, one read at a moment, the writes to a key. They read the data directory, and need
no control plane."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cachekeep.backup.recording import ShardRecording, recordings, told
from cachekeep.cli import options, settings_of
from cachekeep.engines.catalogue import Catalogue, numbers
from cachekeep.errors import EngineMissing, InvalidValue, printable
from cachekeep.settings import ENGINES_DIR, Settings
from cachekeep.toolchain.installed import discover

_BACK = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.argument("cache")
@options("data_dir")
def timeline(cache: str, **flags: Any) -> None:
    """Which moments of CACHE can be brought back, and what happened between them."""
    for recording in _find(settings_of(flags), cache):
        about = recording.about
        click.echo(
            f"{about.cache} shard {about.shard}: {'recording' if recording.on() and recording.running() else 'not recording'}"
        )
        for span in recording.timeline().spans():
            click.echo(f"  {told(span.begin)} to {told(span.end)}  (before it: {printable(span.why) or 'unknown'})")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@options("data_dir")
@click.option("--db", "database", default=0, show_default=True, help="The database that it reads.")
@click.option("--rdb", metavar="FILE", type=click.Path(path_type=Path), help="Write all of it to a new file; for each shard one.")
@click.argument("cache")
@click.argument("time")
@click.argument("command", nargs=-1)
def at(cache: str, time: str, command: tuple[str, ...], database: int, rdb: Path | None, **flags: Any) -> None:
    """What CACHE would have answered to a COMMAND that reads, at a TIME: 06:10:00, 2026-11-28T06:10:00Z, -90s or latest."""
    settings = settings_of(flags)
    if (rdb is None) == (not command):
        raise InvalidValue("say one of both: a command that reads, or --rdb FILE.")
    if rdb is not None:
        asyncio.run(_write(settings, _find(settings, cache), time, rdb))
        return
    asyncio.run(_ask(settings, _find(settings, cache), time, command, database))


@click.command()
@options("data_dir")
@click.argument("cache")
@click.argument("key")
def history(cache: str, key: str, **flags: Any) -> None:
    """Each write to KEY of CACHE that is recorded: when, in which database, by which command, how long."""
    for recording in _find(settings_of(flags), cache):
        for at_ns, database, words in recording.writes(0, 1 << 62):
            if key.encode() in words[1:]:
                size = sum(map(len, words))
                click.echo(f"{told(at_ns)}  db{database}  {printable(words[0].decode(errors='replace'))}  {size} bytes")


def moment(time: str, recording: ShardRecording, now: dt.datetime) -> int:
    """Nanoseconds. A time of day is the last one that has been. Raises ``InvalidValue``."""
    if time == "latest":
        spans = recording.timeline().spans()
        return spans[-1].end if spans else int(now.timestamp() * 1e9)
    if back := re.fullmatch(r"-(\d+(?:\.\d+)?)([smhd])", time):
        return int((now.timestamp() - float(back[1]) * _BACK[back[2]]) * 1e9)
    try:
        if "T" not in time and " " not in time and "-" not in time:
            clock = dt.time.fromisoformat(time)
            asked = dt.datetime.combine(now.date(), clock, clock.tzinfo or dt.UTC)
            asked = asked if asked <= now else asked - dt.timedelta(days=1)
        else:
            asked = dt.datetime.fromisoformat(time)
            asked = asked if asked.tzinfo else asked.replace(tzinfo=dt.UTC)
    except ValueError:
        raise InvalidValue(f"'{time}' is no time: say 06:10:00, 2026-11-28T06:10:00Z (both UTC), -90s or latest.") from None
    since = asked - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (since // dt.timedelta(microseconds=1)) * 1000


def _find(settings: Settings, cache: str) -> list[ShardRecording]:
    """The recordings of the shards of a cache; of caches of one name, the one that was recorded last. Raises ``InvalidValue``."""
    every = recordings(settings.data_dir)
    found = [r for r in every if r.about.cache == cache]
    if not found:
        names = ", ".join(sorted({r.about.cache for r in every})) or "none is"
        raise InvalidValue(
            f"{cache} is not recorded (recorded: {names}). To have it recorded from now on, tag it "
            "cachekeep:point-in-time=7d. Where it is tagged, the log of `cachekeep up` says why it is not recorded."
        )
    newest = max(found, key=lambda r: r.directory.stat().st_mtime).about.uid
    return [r for r in found if r.about.uid == newest]


def server_of(catalogue: Catalogue, engine: str, version: str) -> tuple[str, ...]:
    """What runs the oldest build that is no older than what wrote a recording. Raises ``EngineMissing``."""
    fit = [b for b in catalogue.builds if b.engine == engine and b.numbers >= numbers(version)]
    if not fit:
        raise EngineMissing(f"no installed {engine} is {version} or newer: `cachekeep engines install {engine}`")
    return (min(fit, key=lambda b: b.numbers).server,)


async def _ask(settings: Settings, found: Sequence[ShardRecording], time: str, command: Sequence[str], database: int) -> None:
    now = dt.datetime.now(dt.UTC)
    catalogue = discover([settings.data_dir / ENGINES_DIR], settings.data_dir)
    for recording in found:
        about = recording.about
        at_ns = moment(time, recording, now)
        server = server_of(catalogue, about.engine, about.version)
        async with recording.materialised(at_ns, server, parent=settings.data_dir) as past:
            shard = f"shard {about.shard}: " if len(found) > 1 else ""
            click.echo(shard + _shown(await past.read(command, database=database, now=now)))


async def _write(settings: Settings, found: Sequence[ShardRecording], time: str, rdb: Path) -> None:
    """All shards at one moment. Raises ``InvalidValue`` before anything is written if one of them cannot be had then."""
    now = dt.datetime.now(dt.UTC)
    catalogue = discover([settings.data_dir / ENGINES_DIR], settings.data_dir)
    at_ns = min(moment(time, recording, now) for recording in found)
    for recording in found:
        recording.way(at_ns)
    for recording in found:
        about = recording.about
        path = rdb if len(found) == 1 else rdb.with_name(f"{rdb.stem}-{about.shard}{rdb.suffix}")
        server = server_of(catalogue, about.engine, about.version)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidValue(f"{path} cannot be written: {error.strerror}. Nothing that was there has changed.") from None
        with os.fdopen(fd, "wb") as file:
            async for chunk in recording.dump(at_ns, server, parent=settings.data_dir):
                file.write(chunk)
        click.echo(f"{path}: {about.cache} shard {about.shard} at {told(at_ns)}")


def _shown(answer: object) -> str:
    match answer:
        case bytes():
            return printable(answer.decode(errors="backslashreplace"))
        case list() | tuple() | set():
            return "\n".join(_shown(each) for each in answer)
        case dict():
            return "\n".join(f"{_shown(name)} {_shown(value)}" for name, value in answer.items())
        case None:
            return "(nil)"
    return printable(str(answer))
