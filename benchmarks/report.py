"""docs/benchmarks.md, section by section: each benchmark replaces its own and leaves the others alone."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

FILE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Each section is written by the benchmark that it names. Ratios compare two things measured in one run on one machine; times are that
machine's own.
"""


def write(title: str, command: str, body: str, path: Path = FILE) -> None:
    """Have the section ``title`` hold ``body`` and say by which ``command`` and on what machine it was measured."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n## {title}\n\n`{command}` on {machine()}.\n\n{body.strip()}\n{end}"
    text = path.read_text() if path.exists() else _HEAD
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text = found.sub(lambda _: section, text) if found.search(text) else f"{text.rstrip()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)


def machine() -> str:
    """In words: processors, system, Python."""
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{len(os.sched_getaffinity(0))} CPUs, {system}, Python {platform.python_version()}"


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
