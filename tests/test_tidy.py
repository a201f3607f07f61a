"""The house in order: each of these finds nothing. What it looks for, and what it still lets pass,
is written in ``tools/tidy.py``."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest
from tools import tidy


@pytest.mark.parametrize("check", tidy.CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_found(check: Callable[[], list[str]]) -> None:
    assert check() == []


def pretend(monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """A house that consists of these files; ``__`` in a name stands for ``/``."""
    made = {f"src/cachekeep/{name.replace('__', '/')}.py": text for name, text in files.items()}
    monkeypatch.setattr(tidy, "texts", lambda: made)
    monkeypatch.setattr(tidy, "parsed", lambda *places: {p: ast.parse(t) for p, t in made.items() if p.startswith(places)})


def test_a_long_file_and_a_long_line_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, long="x = 1\n" * 501, wide=f"x = '{'a b' * 50}'\n", fine="x = 1\n" * 500)
    assert tidy.long_files() == ["src/cachekeep/long.py has 501 lines, 500 are the most"]
    assert tidy.long_lines() == ["src/cachekeep/wide.py:1 has 156 columns, 132 are the most"]


def test_a_dead_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch,
        one="LIVE = 1\nDEAD = LIVE\nclass Kind:\n    def used(self): ...\n    def unused(self): ...\n",
        two="from cachekeep.one import Kind\nKind().used()\n",
    )
    assert tidy.dead_names() == ["src/cachekeep/one.py:2 DEAD is used nowhere", "src/cachekeep/one.py:5 unused is used nowhere"]


def test_a_field_that_is_only_read_or_only_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch,
        model__cache="class Thing:\n    kept: int\n    promised: int = 0\n    idle: int = 0\n",
        plan__rule="def rule(thing):\n    return Thing(kept=thing.promised + thing.kept, idle=1)\n",
    )
    monkeypatch.setattr(tidy, "ONE_WAY", {"Thing.kept"})
    assert tidy.one_way_fields() == [
        "Thing.promised is never given a value",
        "Thing.idle is never read",
        "Thing.kept is read and written: ONE_WAY need not name it",
    ]


def test_what_is_only_dated_anew_or_simulated_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a shard that was emptied was never given its time: a rule, a migration and a list of names mentioned the field."""
    pretend(
        monkeypatch,
        model__cache="class Thing:\n    begun_at: int = 0\n    faked: int = 0\n    asked: int = 0\n",
        plan__rule='def rule(thing):\n    return thing.begun_at, thing.faked, thing.asked, anew(thing, "begun_at")\n',
        store__migrations__one='DATED = ("begun_at",)\n',
        sim__world="thing = Thing(faked=1)\n",
        services__groups='INPUTS = {"asked": "Asked"}\n',
    )
    monkeypatch.setattr(tidy, "ONE_WAY", set())
    assert tidy.one_way_fields() == ["Thing.begun_at is never given a value", "Thing.faked is never given a value"]


def test_a_circle_is_found_be_it_for_types_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch,
        one="from cachekeep.two import x\n",
        two="if TYPE_CHECKING:\n    from cachekeep import three\n",
        three="def f():\n    import cachekeep.one\n",
        four="from cachekeep import one\n",
    )
    assert tidy.circles() == ["cachekeep.one and cachekeep.three and cachekeep.two import each other"]


def test_a_sentence_that_is_compared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So one refusal was told from another by its words, which hold figures."""
    pretend(
        monkeypatch,
        one="if because not in told or step.because == 'x':\n    told.because.startswith('demo')\n",
        two="if step.because is None or said in other:\n    f(because=because)\nhit = re.search('gone', step.because)\n",
    )
    assert tidy.compared_sentences() == [
        "src/cachekeep/one.py:1 compares a sentence",
        "src/cachekeep/one.py:1 compares a sentence",
        "src/cachekeep/one.py:2 compares a sentence",
        "src/cachekeep/two.py:3 compares a sentence",
    ]


def test_a_noun_of_two_things_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, plan__one="class Thing: ...\nclass _Own: ...\n", sim__two="class Thing: ...\nclass _Own: ...\n")
    assert tidy.nouns_twice() == ["Thing is a class of src/cachekeep/plan/one.py and of src/cachekeep/sim/two.py"]
