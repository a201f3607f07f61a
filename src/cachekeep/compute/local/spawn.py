"""Start a detached process behind a gate: it waits until its record is on disk, and goes away if nobody opens the gate.

The child is a shell that reads one line from a pipe and then becomes the program, keeping pid and start time. If the control plane
dies before it has written down which process it started, the pipe closes and the child ends without having become anything. So
there is no moment at which a server runs that no record names, and nothing has to be searched for after a crash.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

_GATE_FD = 3
_LAUNCHER = """
umask 077
ulimit -S -c 0
cd "$1" && shift && read -r go <&3 && exec 3<&- || exit
while [ "$1" != -- ]; do echo 0 >"$1"; shift; done
shift
command -v setpriv >/dev/null && exec setpriv --no-new-privs -- "$@"
exec "$@"
"""
_IGNORED_BY_US = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD)


class Gated:
    """A child that waits. ``release`` lets it become the program; ``abandon`` (or our own death) ends it."""

    def __init__(self, pid: int, gate_fd: int) -> None:
        self.pid = pid
        self._gate_fd = gate_fd

    def release(self) -> None:
        """Let it go on. If it is dead already, its pidfd will tell."""
        try:
            os.write(self._gate_fd, b"go\n")
        except BrokenPipeError:
            pass
        finally:
            os.close(self._gate_fd)

    def abandon(self) -> None:
        """End it and reap it."""
        os.close(self._gate_fd)
        os.waitpid(self.pid, 0)


def spawn(argv: Sequence[str], *, directory: Path, env: Mapping[str, str], output_fd: int, enter: Sequence[Path] = ()) -> Gated:
    """Fork a gated child in a session of its own, with ``directory`` as its working directory and its output to ``output_fd``.

    It enters the control groups whose task files are given before it becomes the program. It leaves no core dump, which would hold
    what clients stored, and gains no rights by what it executes (``no_new_privs``, where setpriv(1) is installed). The environment
    is ``env`` and a PATH: that of the control plane may hold credentials. Raises ``OSError``.
    """
    read_fd, write_fd = os.pipe()
    try:
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _LAUNCHER, "launcher", str(directory), *map(str, enter), "--", *argv],
            {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **env},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output_fd, 1),
                (os.POSIX_SPAWN_DUP2, output_fd, 2),
                (os.POSIX_SPAWN_DUP2, read_fd, _GATE_FD),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_IGNORED_BY_US,
        )
    except BaseException:
        os.close(write_fd)
        raise
    finally:
        os.close(read_fd)
    return Gated(pid, write_fd)
