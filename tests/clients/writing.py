"""What an application of another language feels: its client writes and reads with the client's own defaults while a cache changes.

Every program in ``writers/`` does the same: ``CLIENT cluster|single ADDRESS:PORT``; four writers set keys ``CLIENT:<writer>:<n>``
to ``<n>`` and read each back, until standard input ends; then it says in JSON what was not acknowledged, which errors came how
often, and for how long a writer stood.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import valkey

WRITERS = 4


class Felt:
    """What the writers of one client have felt."""

    def __init__(self, client: str, told: str) -> None:
        seen = json.loads(told.splitlines()[-1])  # GLIDE logs on standard output
        self.client = client
        self.keys = [f"{client}:{w['writer']}:{n}" for w in seen for n in sorted(set(range(w["asked"])) - set(w["unacknowledged"]))]
        """All that were acknowledged."""
        self.errors: Counter[str] = Counter()
        for w in seen:
            self.errors.update(w["errors"])
        longest = max(seen, key=lambda w: w["stall_seconds"])
        self.stall_seconds, self.stall_at = longest["stall_seconds"], longest["stall_at"]

    def lost(self, primaries: Sequence[str], port: int = 6379) -> list[str]:
        """Acknowledged keys that none of these nodes has."""
        missing = self.keys
        for address in primaries:
            with valkey.Valkey(host=address, port=port, socket_timeout=30) as node:
                found: list[object] = []
                for start in range(0, len(missing), 1000):
                    with node.pipeline(transaction=False) as batch:
                        for key in missing[start : start + 1000]:
                            batch.exists(key)
                        found += batch.execute(raise_on_error=False)
            missing = [key for key, there in zip(missing, found, strict=True) if there != 1]
        return missing

    def __str__(self) -> str:
        errors = "; ".join(f"{n} × {text}" for text, n in self.errors.most_common()) or "none"
        return f"{self.client}: {len(self.keys)} acknowledged, stood {self.stall_seconds:.2f} s, errors: {errors}"


class Writing:
    """A client that writes, from ``start`` to ``stop``. ``program`` is where its program is run, ``place`` for its complaints."""

    def __init__(
        self, client: str, command: Sequence[str], mode: str, address: str, *, program: Path, place: Path, port: int = 6379
    ) -> None:
        self.client = client
        self._command = [*command, client, mode, f"{address}:{port}"]
        self._program, self._complaints = program, place / f"complaints-{client}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns with its first acknowledged write."""
        with self._complaints.open("w") as complaints:
            self._process = subprocess.Popen(
                self._command, cwd=self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
            )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        assert first == "writing\n", f"{self.client} does not write: {first}{self._said()}"

    def stop(self, seconds: float = 150) -> Felt:
        """What it has felt. A command that hangs for longer than ``seconds`` fails."""
        assert self._process is not None
        try:
            told, _ = self._process.communicate("", timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.client} hangs for more than {seconds} s: {self._said()}") from None
        assert self._process.returncode == 0, f"{self.client} ended with {self._process.returncode}: {self._said()}"
        return Felt(self.client, told)

    def kill(self) -> None:
        """Gone on return."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _said(self) -> str:
        return self._complaints.read_text()[-4000:]
