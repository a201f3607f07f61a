"""What a snapshot costs: from an engine into a sealed vault, against ``redis-cli --rdb`` to a file; and from a vault until an
engine serves it, against the same engine that loads the same RDB by itself.

    python -m benchmarks.backup [--engine valkey:8] [--megabytes 512] [--rounds 3]

In turn, on one machine; of each side the median. Values are half random, half text, 1,000 bytes each. Written to
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import valkey.asyncio
import valkey.exceptions
from benchmarks import report

from cachekeep.backup.feed import Scratch, scratch
from cachekeep.backup.keyring import RootKeyRing
from cachekeep.backup.replica import receive
from cachekeep.backup.vault import Holding, Vault
from cachekeep.security.sealing import Sealing
from cachekeep.toolchain.installed import discover

MIB = 1 << 20
VALUE_BYTES, BATCH = 1000, 2000
PATIENCE_SECONDS = 600.0
OBJECT = "0001.rdb"


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def fill(engine: Scratch, megabytes: int) -> None:
    await engine.client.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
    for first in range(0, megabytes * MIB // VALUE_BYTES, BATCH):
        pipe = engine.client.pipeline(transaction=False)
        for number in range(first, first + BATCH):
            pipe.set(f"key:{number}", os.urandom(VALUE_BYTES // 2) + b"some text " * (VALUE_BYTES // 20))
        await pipe.execute()


async def measure(server: str, cli: str, megabytes: int, rounds: int, place: Path) -> str:
    vault = Vault.open(str(place / "vault"), RootKeyRing(Sealing(os.urandom(32))))
    file = place / "plain.rdb"
    seconds: dict[str, list[float]] = {"cli": [], "vault": [], "alone": [], "restored": []}
    async with scratch((server,), parent=place, settings={"repl-diskless-sync-delay": "0"}) as engine:
        await fill(engine, megabytes)
        held = await engine.keys()
        [socket] = await asyncio.to_thread(lambda: list(place.glob("*/engine.sock")))

        async def by_cli() -> None:
            process = await asyncio.create_subprocess_exec(cli, "-s", str(socket), "--rdb", str(file), stderr=-3, stdout=-3)
            assert await process.wait() == 0

        async def snapshot() -> None:
            draft = await vault.draft("demo", "benchmark")
            async with draft.put(OBJECT) as writer:
                await receive(socket, None, writer.write, deadline_seconds=PATIENCE_SECONDS)
            await draft.commit(created_at=dt.datetime.now(dt.UTC), about={})

        for _ in range(rounds):
            seconds["cli"].append(await timed(by_cli))
            seconds["vault"].append(await timed(snapshot))
            *older, holding = (await vault.holdings()).holdings
            for old in older:
                await vault.delete(old.id)

    async def alone() -> None:
        assert await loaded(server, file) == held

    async def restored() -> None:
        async with (
            scratch((server,), parent=place) as engine,
            engine.fed(vault.read(holding, OBJECT), history="a" * 40, offset=0) as feeding,
        ):
            await feeding.settle()
            assert await engine.keys() == held

    for _ in range(rounds):
        seconds["alone"].append(await timed(alone))
        seconds["restored"].append(await timed(restored))
    vault.close()
    return told(seconds, holding)


async def loaded(server: str, file: Path) -> dict[int, int]:
    """How many keys the engine has when it has loaded the file by itself and serves."""
    socket = file.with_suffix(".sock")
    words = ("--port", "0", "--save", "", "--unixsocket", str(socket), "--dir", str(file.parent), "--dbfilename", file.name)
    process = await asyncio.create_subprocess_exec(server, *words, stdout=asyncio.subprocess.DEVNULL)
    client = valkey.asyncio.Valkey(unix_socket_path=str(socket))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(valkey.exceptions.ConnectionError):
                    await client.ping()  # refused while it loads
                    return {int(name[2:]): seen["keys"] for name, seen in (await client.info("keyspace")).items()}
                await asyncio.sleep(0.02)
    finally:
        await client.aclose()
        process.kill()
        await process.wait()


def told(seconds: dict[str, list[float]], holding: Holding) -> str:
    size = holding.objects[OBJECT]
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [
        ("snapshot, sealed, into a directory", f"{middle['vault']:.2f} s", f"{size.bytes / MIB / middle['vault']:.0f} MiB/s", ""),
        ("`redis-cli --rdb`", f"{middle['cli']:.2f} s", f"{size.bytes / MIB / middle['cli']:.0f} MiB/s", ""),
        ("ratio", "", f"{middle['cli'] / middle['vault']:.2f}", "≥ 0.8"),
        ("restored from the vault until it serves", f"{middle['restored']:.2f} s", "", ""),
        ("the engine loading the file by itself", f"{middle['alone']:.2f} s", "", ""),
        ("ratio", f"{middle['restored'] / middle['alone']:.2f}", "", "≤ 1.3"),
    ]
    stored = f"An RDB of {size.bytes / MIB:.0f} MiB, {size.stored_bytes / MIB:.0f} MiB in the vault. "
    busy = f"The machine's load average was {os.getloadavg()[0]:.1f}.\n\n"
    return stored + busy + report.table(("what", "time", "rate", "bar"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="valkey:8")
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    engine, _, major = given.engine.partition(":")
    build = next(b for b in discover().builds if b.engine == engine and b.numbers[0] == int(major))
    place = Path(tempfile.mkdtemp(prefix="cachekeep-bench-"))
    try:
        cli = build.cli or shutil.which("redis-cli") or "redis-cli"
        body = asyncio.run(measure(build.server, cli, given.megabytes, given.rounds, place))
    finally:
        shutil.rmtree(place)
    command = f"python -m benchmarks.backup --engine {given.engine} --megabytes {given.megabytes} --rounds {given.rounds}"
    print(body)
    report.write("Backups", command, f"{engine} {build.version}. {body}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
