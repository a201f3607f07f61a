"""The library with which a stock Memcached answers ``config get cluster``: compiled here, and tried before it is relied upon."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from cachekeep.engines import discovery
from cachekeep.errors import EngineMissing

SOURCE = Path(__file__).with_name("memcached_config.c")
_CC = ("-O2", "-fno-builtin-memchr", "-shared", "-fPIC")
_DEADLINE_SECONDS = 20.0


def library(directory: Path) -> Path:
    """The compiled library, in ``directory``; compiled now if it is not there yet. Raises ``EngineMissing``."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join((*_CC, platform.machine())).encode()).hexdigest()[:12]
    path = directory / f"memcached-config-{digest}.so"
    if path.is_file():
        return path
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise EngineMissing("there is no C compiler: apt install gcc libc6-dev")
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        command = [compiler, *_CC, "-o", str(draft), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "no output").splitlines()[0]
            raise EngineMissing(f"{Path(compiler).name} failed: {said} (apt install gcc libc6-dev)")
        draft.chmod(0o755)
        draft.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineMissing(f"the library could not be compiled: {error}") from error
    return path


def try_with(server: Path, preload: Path) -> str:
    """Start ``server`` with the library, on a unix socket in a directory of its own, and ask. Why it is of no use with it; empty:
    it answers in text and in binary, and withholds what it should."""
    told = "1\n127.0.0.1|127.0.0.1|11211\n"
    with tempfile.TemporaryDirectory(prefix="cachekeep-probe-") as scratch:
        (Path(scratch) / discovery.BOARD).write_text(discovery.first_board(told))
        argv = [str(server), "-s", "socket", "-a", "600", "-t", "1", "-m", "8", *(() if os.geteuid() else ("-u", "root"))]
        env = {"LD_PRELOAD": str(preload)}
        try:
            process = subprocess.Popen(argv, cwd=scratch, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            return str(error)
        try:
            return _ask(Path(scratch) / "socket", told, process)
        except OSError as error:
            return f"it does not answer: {error}"
        finally:
            process.kill()
            process.wait()


def _ask(path: Path, told: str, process: subprocess.Popen[bytes]) -> str:
    text = f"CONFIG cluster 0 {len(told)}\r\n{told}\r\nEND\r\n".encode()
    binary = bytes((0x81, 0x60, 0, 0, 4)) + bytes(6) + bytes((4 + len(told),)) + b"asks" + bytes(12) + told.encode()
    asked = bytes((0x80, 0x60, 0, 7)) + bytes(7) + bytes((7,)) + b"asks" + bytes(8) + b"cluster"
    until = time.monotonic() + _DEADLINE_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            return f"it does not start (exit code {process.returncode})"
        time.sleep(0.002)
    withheld = b"verbosity 1\r\n", b"ERROR\r\n"
    for question, answer in ((b"config get cluster\r\n", text), (asked, binary), withheld):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(2.0)
            while s.connect_ex(str(path)) and time.monotonic() < until:
                time.sleep(0.002)
            s.sendall(question)
            got = b""
            while len(got) < len(answer) and answer.startswith(got) and (piece := s.recv(4096)):
                got += piece
            if got != answer:
                return f"it answers {got[:40]!r}"
    return ""
