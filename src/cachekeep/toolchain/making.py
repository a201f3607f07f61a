"""How far a build is that somebody else makes, and one that is made in the background while caches are served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from cachekeep.toolchain.build import Progress

log = logging.getLogger(__name__)

REPORT: Final = ".making.json"
NICENESS = 10
"""It yields to engines and the control plane, and comes to an end on a busy machine, too."""
_SETTLES_SECONDS: Final = 10.0
_TRIED_AGAIN_AFTER_SECONDS: Final = 86_400.0
_TOLD_EVERY_PERCENT: Final = 10


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """A build under way, or the last one that failed."""

    spec: str
    state: Literal["building", "failed"]
    pid: int
    at: float
    """Of the wall clock, in seconds: for people, and to try again another day."""
    stage: str = ""
    percent: int | None = None
    why: str = ""

    @property
    def sentence(self) -> str:
        """How it stands."""
        if self.state == "failed":
            return f"{self.spec} could not be built: {self.why}"
        return f"{self.spec} is being built: {self.stage}{'' if self.percent is None else f', {self.percent} %'}"


class Bulletin:
    """The build of one directory of builds, as it is told to whoever asks. Written by who builds; a killed one's is gone."""

    def __init__(self, builds_dir: Path, spec: str) -> None:
        self._path = builds_dir / REPORT
        self._spec = spec
        self._told: tuple[str, int | None] | None = None

    def tell(self, step: Progress) -> bool:
        """Note a step. Whether it is another one than the last that was noted."""
        percent = None if step.percent is None else step.percent // _TOLD_EVERY_PERCENT * _TOLD_EVERY_PERCENT
        if self._told == (step.stage, percent):
            return False
        self._told = (step.stage, percent)
        self._write(Making(spec=self._spec, state="building", pid=os.getpid(), at=time.time(), stage=step.stage, percent=percent))
        return True

    def failed(self, why: str) -> None:
        other = making(self._path.parent)
        if other is not None and other.state == "building" and other.pid != os.getpid():
            return  # which is why this one failed
        self._write(Making(spec=self._spec, state="failed", pid=os.getpid(), at=time.time(), why=why))

    def done(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self, making: Making) -> None:
        with contextlib.suppress(OSError):  # it is told, and the build does not hang on it
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(f".{os.getpid()}")
            draft.write_bytes(msgspec.json.encode(making))
            draft.replace(self._path)


def making(builds_dir: Path) -> Making | None:
    """What is being built in a directory of builds, or has failed; None: nothing, or whoever did it is gone."""
    try:
        found = msgspec.json.decode((builds_dir / REPORT).read_bytes(), type=Making)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.state == "failed" or Path(f"/proc/{found.pid}").exists() else None


def tried_lately(builds_dir: Path, spec: str) -> bool:
    """Whether it failed within a day: what it needs is hardly there yet."""
    last = making(builds_dir)
    return last is not None and (last.spec, last.state) == (spec, "failed") and time.time() - last.at < _TRIED_AGAIN_AFTER_SECONDS


async def make(spec: str, data_dir: Path, builds_dir: Path, again: str) -> bool:
    """Build what ``spec`` names by a process of its own that yields to all others, and say how it goes. Whether it is there now.

    Cancelled, it ends it. ``again``: the command that does the same.
    """
    nice = shutil.which("nice")
    command = (sys.executable, "-m", "cachekeep", "engines", "install", spec, "--safe", "--data-dir", str(data_dir))
    process = await asyncio.create_subprocess_exec(
        *((nice, "-n", str(NICENESS)) if nice else ()),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in the terminal is ours to pass on
    )
    assert process.stderr is not None
    try:
        async for raw in process.stderr:
            log.debug("build of %s: %s", spec, raw.decode(errors="replace").strip())
            if (now := making(builds_dir)) is not None and now.state == "building":
                log.info("%s", now.sentence)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # it ends its compiler and sweeps up
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _SETTLES_SECONDS)
    if code == 0:
        log.info("%s has been built; new caches and nodes that start anew use it", spec)
        return True
    last = making(builds_dir)
    why = last.sentence if last is not None and last.state == "failed" else f"{spec} could not be built: it ended with {code}."
    log.warning("%s Caches go on with the engines that are here. To try again before tomorrow: `%s`", why, again)
    return False
