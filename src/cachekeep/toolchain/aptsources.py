"""apt's own account of where this machine gets its packages: to ask the same mirror for another suite.

Pure, and standard library only: set-up imports it before there is an environment, from any Python since 3.9.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import NamedTuple

# What an entry says about *which* indexes to fetch. The rest, how the mirror is reached and trusted, is kept.
_SELECTS = {"types", "uris", "suites", "components", "enabled", "architectures", "languages", "targets"}
_ONE_LINE_SELECTS = {"arch", "lang", "target"}


class Source(NamedTuple):
    """One entry of the machine's apt sources: the mirror, and its options (Signed-By, Trusted …)."""

    uri: str
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...]


def stanzas(text: str) -> list[dict[str, str]]:
    """The paragraphs of a deb822 text: names in lower case, continuation lines kept, comments dropped."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                found.append(fields)
            fields, name = {}, ""
        elif line[0] in " \t" and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return found


def entry_options(file_name: str, text: str, number: int) -> tuple[tuple[str, str], ...]:
    """The options of entry ``number`` of a sources file, as deb822 fields.

    In ``Sourcesentry: FILE:NUMBER`` apt counts the stanzas of a ``.sources`` file and the lines of a ``.list``
    file, from 1.
    """
    if PurePath(file_name).suffix == ".sources":
        entries = stanzas(text)
        fields = entries[number - 1] if 0 < number <= len(entries) else {}
        return tuple((name.title(), value) for name, value in fields.items() if name not in _SELECTS)
    lines = text.splitlines()
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    bracketed = re.match(r"\s*deb(?:-src)?\s+\[([^\]]*)\]", line)
    options = (option.partition("=") for option in (bracketed.group(1).split() if bracketed else ()))
    return tuple((key.title(), value.replace(",", " ")) for key, _, value in options if key not in _ONE_LINE_SELECTS)


def sources_of(targets: str, codename: str, read: Callable[[str], str]) -> list[Source]:
    """The machine's sources of the release ``codename``, in apt's order.

    ``targets`` is what ``apt-get indextargets`` prints; ``read`` gives the text of a file, or raises OSError.
    """
    components: dict[tuple[str, str], list[str]] = {}
    for target in stanzas(targets):
        if target.get("created-by") == "Packages" and target.get("release") == codename and "repo-uri" in target:
            known = components.setdefault((target["repo-uri"], target.get("sourcesentry", "")), [])
            if target.get("component", "") not in ("", *known):
                known.append(target["component"])
    found = []
    for (uri, entry), names in components.items():
        file_name, _, number = entry.rpartition(":")
        try:
            options = entry_options(file_name, read(file_name), int(number))
        except (OSError, ValueError):
            options = ()
        found.append(Source(uri, tuple(names), options))
    return found


def source_text(source: Source, suite: str, kind: str = "deb") -> str:
    """A deb822 entry for another suite of the same mirror, reached and trusted as the entry it comes from."""
    fields = [
        ("Types", kind),
        ("URIs", source.uri),
        ("Suites", suite),
        ("Components", " ".join(source.components)),
        *source.options,
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields)
