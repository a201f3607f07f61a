"""What /proc says about a process, and signals that reach that process and no other.

A process is known by pid, start time and boot: a pid alone may be anybody's by now. Once a pidfd is open on it, signals go through
that descriptor and cannot hit a stranger.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import NamedTuple

from cachekeep.model import Process

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # Linux 6.9


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that we use (proc(5))."""

    state: str
    parent: int
    group: int
    session: int
    started_ticks: int
    cpu_ticks: int
    """Used so far, in user mode and in the kernel."""


def parse_stat(text: str) -> Stat:
    """Read one line of /proc/PID/stat. The command name may itself hold spaces and parentheses, so count from the last one."""
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), int(fields[11]) + int(fields[12]))


def process_of(state_letter: str) -> Process:
    """What a state letter means for us. Only a stop by signal or tracer is ``frozen``: D and R are a process at work."""
    match state_letter:
        case "T" | "t":
            return "frozen"
        case "Z" | "X" | "x":
            return "exited"
        case _:
            return "running"


def stat(pid: int) -> Stat | None:
    """The state of a process now; None if there is none of that number. CPU time is that of its main thread, on which engines carry
    out commands."""
    try:
        with open(f"/proc/{pid}/task/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, so that it can reap them (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def open_pidfd(pid: int, started_ticks: int) -> int | None:
    """A pidfd on exactly the process that began at ``started_ticks``, be it a zombie by now; None if that one is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Looked at after the descriptor was opened: if it is the right one now, the descriptor is on the right one.
    seen = stat(pid)
    if seen is None or seen.started_ticks != started_ticks:
        os.close(pidfd)
        return None
    return pidfd


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Signal the process alone; nothing happens if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def kill_group(pidfd: int, pid: int, started_ticks: int) -> None:
    """SIGKILL the process and what it forked: a background save that outlives its server would write over its successor's files."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        pass
    except OSError:  # EINVAL: an older kernel
        send_signal(pidfd, signal.SIGKILL)
        seen = stat(pid)
        if seen is not None and seen.started_ticks == started_ticks:  # the number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def is_doomed(pid: int) -> bool:
    """Whether SIGKILL waits for every thread of the process: then none of them executes an instruction of its own again, though
    what it does in the kernel may keep it there (signal(7): a fatal signal is acted on before a return to user mode)."""
    threads = []
    with contextlib.suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")
    return bool(threads) and all(_is_thread_doomed(pid, thread) for thread in threads)


def _is_thread_doomed(pid: int, thread: str) -> bool:
    try:
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return bool(pending >> (signal.SIGKILL - 1) & 1) or process_of(fields["State"].split()[0]) == "exited"


class Ending(NamedTuple):
    """How a process ended. ``status`` is its exit code, or minus the signal; None: it was not our child, nobody told us."""

    status: int | None

    def __str__(self) -> str:
        match self.status:
            case None:
                return "ended (exit code not known: started by an earlier control plane)"
            case code if code >= 0:
                return f"exited with code {code}"
            case number:
                return f"was killed by {signal.Signals(-number).name}"


def ending(pidfd: int) -> Ending:
    """Learn how an ended process ended, without reaping it: while it is a zombie, its number belongs to nobody else."""
    try:
        told = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return Ending(None)
    if told is None:
        return Ending(None)
    return Ending(told.si_status if told.si_code == os.CLD_EXITED else -told.si_status)


def reap_group(pid: int, *, block: bool) -> bool:
    """Reap those of our children that belong to the process group ``pid``, and no others. False: some of them still live."""
    while True:
        try:
            if os.waitid(os.P_PGID, pid, os.WEXITED | (0 if block else os.WNOHANG)) is None:
                return False
        except ChildProcessError:
            return True


def sessions_in(directory: Path) -> list[int]:
    """Pids of session leaders whose working directory is ``directory``: what our launcher makes of every process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                seen = stat(int(entry))
                if seen is not None and seen.session == int(entry) and os.readlink(f"/proc/{entry}/cwd") == str(directory):
                    found.append(int(entry))
            except OSError:
                continue
    return found
