"""Every command that an error, a help text or the documentation advises can be given as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.engines.test_catalogue import installed

import cachekeep
from cachekeep.cli import cachekeep as cli
from cachekeep.engines.catalogue import OFFERS, Catalogue, numbers
from cachekeep.errors import EngineMissing
from cachekeep.toolchain.build import parse_spec

SOURCES = Path(cachekeep.__file__).parent
ROOT = Path(__file__).parent.parent.parent
NAMES = "|".join(cli.list_commands(click.Context(cli, **cli.context_settings)))
QUOTED = re.compile(r"(?:`|\$\()cachekeep ([^`)]+)")
BARE = re.compile(rf"(?<![\w/.`(-])cachekeep (?:{NAMES})\b")
PIECES = {"catalogue.py"}
"""Where a command is made that others quote."""
IN_PAGES = re.compile(rf"(?:^|[\s`(/])cachekeep ((?:{NAMES})\b[^`)#|&;>]*)")


def strings(path: Path) -> Iterator[str]:
    """Strings of a module, with a word in place of each value that is put in; flags that a function makes are left out."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(_filled(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def _filled(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return "" if re.search("flag|where", ast.unparse(part)) else "demo"


def advised() -> list[tuple[str, str]]:
    """(where, command without its first word)."""
    found = {
        (str(path.relative_to(ROOT)), command)
        for path in SOURCES.rglob("*.py")
        for text in strings(path)
        for command in QUOTED.findall(" ".join(text.split()))
    }
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs" / "guide").rglob("*.md"), *(ROOT / "docs" / "decisions").rglob("*.md")]
    found |= {
        (str(path.relative_to(ROOT)), command)
        for path in pages
        for line in path.read_text().splitlines()
        if line.startswith(("    ", "`")) or "`" in line
        for command in IN_PAGES.findall(line)
        if line.startswith("    ") or "`" in line.partition(f"cachekeep {command}")[0]
    }
    mentions = {(where, command) for where, command in found if all(word in NAMES.split("|") for word in command.split())}
    return sorted(found - mentions | {row for row in mentions if row[1] in ("up", "down", "status")})


def parse(words: list[str]) -> None:
    """Raises what the command line would refuse them with; runs nothing."""
    command: click.Command = cli
    context = click.Context(cli, info_name="cachekeep", **cli.context_settings)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, child, words = command.resolve_command(context, words)
        assert child is not None
        if isinstance(child, click.Group) and (not words or words[0].startswith("-")):
            child.make_context(name, list(words), parent=context)
            return
        command = child
        context = click.Context(child, info_name=name, parent=context)
    command.make_context(context.info_name, list(words), parent=context.parent)


def test_there_is_advice() -> None:
    assert len([where for where, _ in advised() if where.endswith(".py")]) > 10
    assert len([where for where, _ in advised() if where.endswith(".md")]) > 10


@pytest.mark.parametrize(("where", "command"), advised(), ids=lambda text: text[:80])
def test_a_command_that_is_advised_is_one(where: str, command: str) -> None:
    parse(shlex.split(command.replace("…", "").strip().rstrip(".,:'\"")))


def test_no_advice_hides_among_plain_words() -> None:
    """What is not quoted is neither tried here nor seen by a reader."""
    hidden = [
        f"{path.name}: {text[:80]}"
        for path in SOURCES.rglob("*.py")
        for text in strings(path)
        if BARE.search(text) and not QUOTED.search(text) and path.name not in PIECES
    ]
    assert hidden == []


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: f"{offer.engine}@{offer.version}")
@pytest.mark.parametrize("data_dir", ["", "/var/lib/my caches"])
def test_an_engine_that_is_advised_serves_what_was_asked_for(offer: object, data_dir: str) -> None:
    """Debian's suites hold redis 7.0 and 8, valkey 8.0, 8.1 and 9.1, memcached 1.6: nothing else can be built."""
    engine, version = offer.engine, offer.version  # type: ignore[attr-defined]
    with pytest.raises(EngineMissing) as refused:
        Catalogue(data_dir=data_dir).choose(engine, version)
    told = QUOTED.findall(str(refused.value))
    if told[0].startswith("up"):
        assert "cannot be built" in str(refused.value)
        return
    words = shlex.split(told[0])
    assert words[:2] == ["engines", "install"]
    assert words[3:] == (["--data-dir", data_dir] if data_dir else [])
    of, line = parse_spec(words[2])
    built = f"{of}-{'.'.join(map(str, line))}.99"
    assert installed(built).resolve(engine, version).numbers[:2] == line
    assert line in {"redis": {(7, 0)}, "valkey": {(8, 0), (8, 1), (9, 1)}, "memcached": {(1, 6)}}[of]


def test_what_nobody_can_build_is_not_advised() -> None:
    for engine, version in (("redis", "6.2"), ("redis", "4.0.10"), ("memcached", "1.4.5"), ("valkey", "7.2")):
        assert numbers(version)
        with pytest.raises(EngineMissing) as refused:
            Catalogue().choose(engine, version)
        assert "engines install" not in str(refused.value)


@pytest.mark.parametrize("answer", ["n\n", "\n"])
def test_no_means_that_nothing_was_stopped(tmp_path: Path, answer: str) -> None:
    from cachekeep.errors import Unusable

    tmp_path.chmod(0o700)
    said = CliRunner().invoke(cli, ["down", "--engines", "--data-dir", str(tmp_path)], input=answer)
    assert isinstance(said.exception, Unusable)
    assert str(said.exception).startswith("nothing was stopped")
