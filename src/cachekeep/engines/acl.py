"""Access strings: what a user of a cache may do, in the language of Redis' and Valkey's ACLs, as ElastiCache takes it. Pure.

A string is read into a tree, and every text that leaves here is written from the tree: nothing that a client of the API has written
is passed on to an engine. What an engine is told beside it is in ``users.py``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files

import msgspec

from cachekeep.errors import InvalidValue

CATEGORIES = frozenset(
    {"admin", "bitmap", "blocking", "connection", "dangerous", "fast", "geo", "hash", "hyperloglog", "keyspace", "list"}
    | {"pubsub", "read", "scripting", "set", "slow", "sortedset", "stream", "string", "transaction", "write"}
)
Numbers = tuple[int, int]
_CHANNELS_SINCE, _SELECTORS_SINCE, _DATABASES_SINCE = (6, 2), (7, 0), (9, 1)
_NOT_REDIS = (8, 0)
"""From this version on commands are Valkey's alone."""
_KEYS = re.compile(r"(?:~|%([RW]{1,2})~)(.*)", re.IGNORECASE)
_COMMAND = re.compile(r"([+-])(@?)([a-z0-9_-]+)(?:\|([a-z0-9_.-]+))?")
_PASSWORDS = ("nopass", "resetpass", ">", "<", "#", "!")
_DATABASE_DIGITS = 5
_LENGTH_MAX, _SELECTORS_MAX = 10_000, 32
"""What a string may cost: every node is told of all of it, and of what is withheld once more for each selector."""


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """What a user, or one of its selectors, may: all of it at once."""

    keys: tuple[tuple[str, str], ...] = ()
    """(``RW``, ``R`` or ``W``; pattern)."""
    channels: tuple[str, ...] | None = None
    """Patterns; None: what the parameter ``acl-pubsub-default`` says."""
    databases: tuple[int, ...] | None = None
    """None: all of them."""
    everything: bool = False
    """The rules for commands begin with all commands, not with none."""
    commands: tuple[str, ...] = ()
    """Rules in their order: ``+get``, ``-@write``, ``+client|list``."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """An access string. A command may be run if the user itself or one of its selectors may run it."""

    on: bool
    root: Permissions
    selectors: tuple[Permissions, ...] = ()


class BadAccess(InvalidValue):
    """A string that no user can have."""


# ------------------------------------------------------------------ commands


@lru_cache(maxsize=1)
def commands() -> dict[str, Numbers]:
    """Every command and subcommand, and since which version: that of Redis up to 7.2, of Valkey from then on.

    By the engines' own word (``COMMAND DOCS``)."""
    rows = csv.DictReader(files("cachekeep.engines").joinpath("data/commands.csv").read_text().splitlines())
    return {row["command"]: _numbers(row["since"]) for row in rows}


def _numbers(text: str) -> Numbers:
    major, minor = text.split(".")
    return int(major), int(minor)


@lru_cache(maxsize=1)
def _containers() -> frozenset[str]:
    """Commands that have subcommands."""
    return frozenset(name.partition("|")[0] for name in commands() if "|" in name)


def knows(engine: str, numbers: tuple[int, ...], command: str) -> bool:
    """Whether an engine has a command or a subcommand."""
    since = commands().get(command)
    return since is not None and numbers >= since and (engine == "valkey" or since < _NOT_REDIS)


# ------------------------------------------------------------------ reading


@lru_cache(maxsize=4096)
def parse(text: str, withheld: frozenset[str] = frozenset()) -> Access:
    """The tree of an access string. Raises ``BadAccess``.

    ``withheld``: commands and subcommands that nobody is given by name. Rules may give whatever has them among other things
    (``+@all``, ``+acl``): what is told to an engine takes them away again.
    """
    if not text.isprintable():
        raise BadAccess("An access string must consist of printable characters, with spaces between its rules.")
    if len(text) > _LENGTH_MAX:
        raise BadAccess(f"An access string must have at most {_LENGTH_MAX} characters.")
    on = False
    root = _Reader(withheld, selector=False)
    selectors: list[Permissions] = []
    for word in _merged(text.split(" ")):
        lowered = word.lower()
        if lowered in ("on", "off"):
            on = lowered == "on"
        elif lowered == "clearselectors":
            selectors.clear()
        elif word.startswith("("):
            selectors.append(_selector(word, withheld))
            if len(selectors) > _SELECTORS_MAX:
                raise BadAccess(f"An access string can have at most {_SELECTORS_MAX} selectors.")
        else:
            root.read(word)
    return Access(on=on, root=root.done(), selectors=tuple(selectors))


def _merged(words: Iterable[str]) -> list[str]:
    """The words, with those of a selector in one, as an engine joins them. Raises ``BadAccess``."""
    found: list[str] = []
    inside: list[str] = []
    for word in filter(None, words):
        if inside:
            inside.append(word)
        elif word.startswith("("):
            inside = [word]
        else:
            found.append(word)
            continue
        if word.endswith(")"):
            found.append(" ".join(inside))
            inside = []
    if inside:
        raise BadAccess(f"Unmatched parenthesis in the access string: {' '.join(inside)}")
    return found


def _selector(text: str, withheld: frozenset[str]) -> Permissions:
    """What stands within parentheses. An engine splits it once more, and reads quotes there: none may be in it."""
    inner = text[1:-1]
    if any(c in inner for c in "()\"'\\"):
        raise BadAccess(f"The selector {text} must not contain parentheses, quotes or backslashes.")
    reader = _Reader(withheld, selector=True)
    for word in inner.split():
        reader.read(word)
    return reader.done()


class _Reader:
    """Takes the rules of one set of permissions in their order."""

    def __init__(self, withheld: frozenset[str], *, selector: bool) -> None:
        self._withheld, self._selector = withheld, selector
        self._keys: dict[str, str] = {}
        self._channels: list[str] | None = None
        self._databases: tuple[int, ...] | None = None
        self._everything = False
        self._commands: list[str] = []

    def done(self) -> Permissions:
        return Permissions(
            keys=tuple((flags, pattern) for pattern, flags in self._keys.items()),
            channels=None if self._channels is None else tuple(self._channels),
            databases=self._databases,
            everything=self._everything,
            commands=tuple(self._commands),
        )

    def read(self, word: str) -> None:
        """Raises ``BadAccess``."""
        match word.lower():
            case "allkeys" | "~*":
                self._keys = {"*": "RW"}
            case "resetkeys":
                self._keys = {}
            case "allchannels" | "&*":
                self._channels = ["*"]
            case "resetchannels":
                self._channels = []
            case "alldbs":
                self._databases = None
            case "resetdbs":
                self._databases = ()
            case "allcommands" | "+@all":
                self._everything, self._commands = True, []
            case "nocommands" | "-@all":
                self._everything, self._commands = False, []
            case "sanitize-payload" if not self._selector:
                pass  # so it is with everybody
            case lowered:
                self._read_other(word, lowered)

    def _read_other(self, word: str, lowered: str) -> None:
        if found := _KEYS.fullmatch(word):
            flags = "".join(sorted({*(found[1] or "RW").upper()}))
            self._key(found[2], flags, word)
        elif word.startswith("&"):
            if self._channels == ["*"]:
                raise _useless(word, "resetchannels")
            self._channels = [*(c for c in self._channels or () if c != word[1:]), word[1:]]
        elif lowered.startswith("db="):
            self._databases = _databases(word)
        elif lowered == "reset":
            raise BadAccess("The access string must not contain reset: passwords are kept by ElastiCache.")
        elif lowered.startswith(_PASSWORDS):
            raise BadAccess("Passwords cannot be part of an access string: give them in Passwords or AuthenticationMode.")
        elif lowered == "skip-sanitize-payload":
            raise BadAccess("skip-sanitize-payload is not supported: what a client restores is checked.")
        elif found := _COMMAND.fullmatch(lowered):
            self._command(lowered, *found.groups())
        else:
            raise BadAccess(f"Syntax error in the access string at {word!r}.")

    def _key(self, pattern: str, flags: str, word: str) -> None:
        if self._keys.get("*") == "RW":
            raise _useless(word, "resetkeys")
        both = "RW" if len({*flags, *self._keys.get(pattern, "")}) == 2 else flags
        if (pattern, both) == ("*", "RW"):
            self._keys = {}  # there is nothing more to add
        self._keys[pattern] = both

    def _command(self, rule: str, sign: str, category: str, name: str, sub: str | None) -> None:
        """Raises ``BadAccess``."""
        whole = name if sub is None else f"{name}|{sub}"
        unknown = BadAccess(f"Unknown command or category name in the access string: {rule}")
        if category:
            if sub is not None or name not in CATEGORIES:
                raise unknown
        elif whole in self._withheld or name in self._withheld:
            raise BadAccess(f"The access string names {rule}, and {whole} is a restricted command.")
        elif name not in commands() or (sub is not None and whole not in commands() and (name in _containers() or sign == "-")):
            raise unknown
        self._commands = [before for before in self._commands if before[1:] != rule[1:]]
        self._commands.append(rule)


def _useless(word: str, remedy: str) -> BadAccess:
    return BadAccess(f"{word} adds nothing to the pattern *: begin anew with {remedy}.")


def _databases(word: str) -> tuple[int, ...]:
    parts = word[3:].split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) <= _DATABASE_DIGITS for part in parts):
        raise BadAccess(f"Syntax error in the access string at {word!r}: databases are numbers with commas between.")
    return tuple(sorted({int(part) for part in parts}))


# ------------------------------------------------------------------ writing


def normal(access: Access) -> str:
    """The string as ElastiCache gives it back: ``on`` or ``off`` first, where commands begin, nothing twice."""
    words = ["on" if access.on else "off", *_words(access.root, access.root.commands)]
    return " ".join([*words, *(f"({' '.join(_words(s, s.commands))})" for s in access.selectors)])


def _words(p: Permissions, rules: Sequence[str]) -> list[str]:
    words = [f"~{pattern}" if flags == "RW" else f"%{flags}~{pattern}" for flags, pattern in p.keys]
    if p.channels is not None:
        words += ["&*"] if p.channels == ("*",) else ["resetchannels", *(f"&{pattern}" for pattern in p.channels)]
    if p.databases is not None:
        words.append(f"db={','.join(map(str, p.databases))}" if p.databases else "resetdbs")
    return [*words, "+@all" if p.everything else "-@all", *rules]


def least_version(access: Access) -> Numbers:
    """The first version whose engines know all that the string says [fact: 6.2 channels, 7.0 subcommands, selectors, %R~]."""
    each = (access.root, *access.selectors)
    if any(p.databases is not None for p in each):
        return _DATABASES_SINCE
    if access.selectors or any("|" in rule for p in each for rule in p.commands) or any(f != "RW" for p in each for f, _ in p.keys):
        return _SELECTORS_SINCE
    return _CHANNELS_SINCE if access.root.channels is not None else (6, 0)


def rules(p: Permissions, engine: str, numbers: tuple[int, ...], last: Sequence[str]) -> list[str]:
    """What an engine of this version is told of permissions: no command that it does not know, and ``last`` after all else."""
    known = [rule for rule in p.commands if rule[1] == "@" or _known(engine, numbers, rule[1:])]
    return _words(p, [*known, *last])


def _known(engine: str, numbers: tuple[int, ...], command: str) -> bool:
    name, _, sub = command.partition("|")
    return knows(engine, numbers, command if not sub or name in _containers() else name)
