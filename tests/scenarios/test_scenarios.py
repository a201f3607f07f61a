"""Conversations: what is done to a group (``>``), and what its keeper says to it.

``CACHEKEEP_GOLDEN=rewrite make test`` writes the files anew; read the difference before committing it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cachekeep.model import Wanted
from cachekeep.sim.run import Run
from cachekeep.sim.scenario import Scenario
from cachekeep.sim.switch_run import SwitchRun, SwitchScenario
from cachekeep.sim.timeless import run
from cachekeep.sim.users import UID

FILES = sorted(Path(__file__).parent.glob("*.txt"))


class Narration(logging.Handler):
    """Keeps what the keeper says: the sentence of each decision and act, waits only where it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "cachekeep.keeper" and record.levelno == logging.INFO:
            self.said.append(record.getMessage().removeprefix("demo: "))


@pytest.fixture
def narration() -> Iterator[Narration]:
    log, heard = logging.getLogger("cachekeep.keeper"), Narration()
    level = log.level
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    yield heard
    log.removeHandler(heard)
    log.setLevel(level)


class Told(Run):
    """A run whose faults come from a file."""

    kind: type[Scenario] = Scenario

    def __init__(self, lines: list[str], narration: Narration) -> None:
        nodes = int(lines[0].split()[3])
        automatic = "manual" not in lines[0]
        super().__init__(
            self.kind(
                1,
                nodes=nodes,
                faults=False,
                moves=False,
                two_keepers=False,
                flaky=0.0,
                automatic_failover=automatic,
                fence="starve" if "starve" in lines[0] else "confirm",
            )
        )
        self.commands, self.narration, self.out = lines, narration, []

    async def told(self) -> str:
        await self.store.open()
        await self._create()
        self.keepers = [self._keeper("keeper0")]
        out: list[str] = []
        for command in self.commands:
            await self._do(command.removeprefix("> ").split())
            await self._quiet()
            out += [command, *self.narration.said, ""]
            self.narration.said.clear()
        return "\n".join(out)

    async def _do(self, words: list[str]) -> None:
        match words:
            case ["create", *_]:
                return
            case ["kill", *names]:
                for name in names:
                    self.world.kill((UID, name))
            case ["freeze", name]:
                self.world.freeze((UID, name))
            case ["thaw", name]:
                self.world.thaw((UID, name))
            case ["cut", *names]:
                self.world.cut.update((UID, name) for name in names)
            case ["heal", *names]:
                self.world.cut.difference_update((UID, name) for name in names)
            case ["blind"]:
                self.world.blind.add("keeper0")
            case ["sees"]:
                self.world.blind.discard("keeper0")
            case ["deaf", name]:  # the stream to this replica stops before the primary has its first ACK
                engine = self.world.processes[UID, name]
                engine.online, engine.link_epoch = False, engine.link_epoch + 1
            case ["write", count]:
                for n in range(int(count)):
                    assert self.world.write(self.cache.decided.shards[0].primary_address or "", n)  # type: ignore[union-attr]
            case ["restart", "keeper"]:
                await self._restart_keeper(0)
            case ["errand", kind, *rest]:
                await self._told_errand(kind, rest)
            case ["mode", mode]:
                await self._change(lambda wanted: replace(wanted, cluster_mode=mode))
            case ["keys", "elsewhere", there]:
                self.world.kept_elsewhere = there == "yes"  # type: ignore[attr-defined]
            case ["members", count]:
                await self._change(lambda wanted: _members(wanted, int(count)))
            case _:
                raise AssertionError(f"no such command: {words}")

    async def _told_errand(self, kind: str, rest: list[str]) -> None:
        await self._change(lambda wanted: wanted.asking(kind, nodes=tuple(rest), shard="0001"))  # type: ignore[arg-type]

    async def _quiet(self) -> None:
        """Until the keeper has had nothing to say for a while."""
        heard, since = -1, 0
        while since < 40:
            await asyncio.sleep(0.25)
            heard, since = len(self.narration.said), since + 1 if len(self.narration.said) == heard else 0


class ToldSwitch(Told, SwitchRun):
    """One in a world of both modes."""

    kind = SwitchScenario


def _members(wanted: Wanted, count: int) -> Wanted:
    from msgspec.structs import replace

    from cachekeep.model import Member

    members = tuple(Member(name=f"demo-{i + 1:03}", zone="abc"[i % 3]) for i in range(count))
    return replace(wanted, shards=(replace(wanted.shards[0], members=members),))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_conversation(file: Path, narration: Narration) -> None:
    text = file.read_text()
    commands = [line for line in text.splitlines() if line.startswith("> ")]
    told = run((ToldSwitch if "switch" in commands[0] else Told)(commands, narration).told())
    if os.environ.get("CACHEKEEP_GOLDEN") == "rewrite":
        file.write_text(told)
    assert told == text
