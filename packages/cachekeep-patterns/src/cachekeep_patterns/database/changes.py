"""What a statement changes: which tables, and of watched models which rows.

Asked at the connection, where every way of a session into its database ends: the unit of work, `session.execute` and
`Query.update`, bulk operations, association tables, and SQL as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase

LOOKING = "cachekeep.looking"
"""In the `info` of the sessions that only look at what is about to change."""

MAX_ROWS = 10_000
"""A statement that changes more rows of a watched model than this does not tell which."""

_CHUNK = 200
_COMPARABLE = (sa.Integer, sa.String, sa.Boolean, sa.Date, sa.DateTime, sa.Uuid)
_PART = r"""(?:[\w$]+|"[\w$]+"|`[\w$]+`|\[[\w$]+\])"""
_NAME = rf"(?:{_PART}\s*\.\s*)*({_PART})"
_HIDDEN = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)
_WRITES = re.compile(
    rf"""\b(?:(?:insert|replace)\s+(?:(?:or\s+\w+|ignore|delayed|low_priority)\s+)*into
    |merge\s+into
    |(?<!for\s)(?<!key\s)(?<!do\s)update(?:\s+or\s+\w+|\s+ignore)?
    |delete\s+from
    |truncate(?:\s+table)?
    |copy|load\s+data\b.*?\binto\s+table|alter\s+table|drop\s+table(?:\s+if\s+exists)?
    )\s+(?:only\s+)?(?!set\b){_NAME}((?:\s*,\s*(?:{_PART}\s*\.\s*)*{_PART})*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# The first words of statements that change no rows of tables.
_HARMLESS = re.compile(
    "select|values|table|show|set|reset|savepoint|release|rollback|begin|start|commit|end|pragma|listen|unlisten|notify|lock|declare"
    "|fetch|move|close|analyze|vacuum|use|describe|desc|create|grant|revoke|comment|discard|deallocate|prepare|attach|detach"
    "|checkpoint|refresh|reindex|cluster",
    re.IGNORECASE,
)
_FALLS = {"CASCADE", "SET NULL", "SET DEFAULT"}


def tables_of_text(sql: str) -> list[str] | None:
    """The tables that SQL text writes to. None if it may write somewhere that the text does not tell (CALL, DO, …)."""
    names: dict[str, None] = {}
    for part in _HIDDEN.sub(" ' ", sql).split(";"):
        words = part.replace("(", " ").split(None, 2)
        if not words or _HARMLESS.fullmatch(words[0]):
            continue
        if words[0].lower() == "copy" and part.split(None, 1)[1].lstrip().startswith("("):
            continue
        found = list(_WRITES.finditer(part))
        if not found and words[0].lower() not in ("with", "explain"):
            return None
        for one in found:
            several = [one[1], *(more.rpartition(".")[2] for more in one[2].split(","))]
            names.update((name.strip().strip('"`[]'), None) for name in several if name.strip())
    return list(names)


def writes_within(statement: Any) -> UpdateBase | None:
    """The INSERT, UPDATE or DELETE that ``statement`` is, unwrapped."""
    inner = getattr(statement, "element", statement)
    return inner if isinstance(inner, UpdateBase) else None


def plain(table: Any) -> Any:
    """The table behind an alias."""
    while not isinstance(table, sa.TableClause) and hasattr(table, "element"):
        table = table.element
    return table


def falling_with(table: sa.Table) -> Iterator[tuple[sa.Table, Sequence[sa.ForeignKey]]]:
    """The tables whose rows the database itself changes or deletes when rows of ``table`` are deleted."""
    for other in table.metadata.tables.values():
        for constraint in other.foreign_key_constraints:
            if (constraint.ondelete or "").upper() in _FALLS and constraint.referred_table is table:
                yield other, constraint.elements


def all_falling_with(table: sa.Table) -> set[sa.Table]:
    known = {table}
    todo = [table]
    while todo:
        for other, _ in falling_with(todo.pop()):
            if other not in known:
                known.add(other)
                todo.append(other)
    return known - {table}


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows a statement is about to change: those of ``entity`` (mapped to ``table``) under ``where``."""

    entity: Mapper[Any]
    where: Any  # a clause, or None for all


def condition(statement: Update | Delete, several: Sequence[Mapping[str, Any]], one: Mapping[str, Any]) -> list[Any]:
    """The WHERE of a statement with its parameters in, in parts where it is carried out many times."""
    where = statement.whereclause
    if where is None:
        return [None]
    told = [_told(where, each) for each in (several or [one])]
    return [sa.or_(*told[at : at + _CHUNK]) for at in range(0, len(told), _CHUNK)]


def _told(where: Any, parameters: Mapping[str, Any]) -> Any:
    """``where`` with its parameters in it."""

    def tell(part: Any, **_: Any) -> sa.BindParameter[Any] | None:
        if isinstance(part, sa.BindParameter) and part.key in parameters:
            return sa.bindparam(None, parameters[part.key], type_=part.type, expanding=part.expanding)
        return None

    traverse = cast(Any, visitors.replacement_traverse)
    return traverse(where, {}, tell) if parameters else where


def look(eye: Session, rows: Rows) -> list[Any] | None:
    """The instances of ``rows`` as ``eye`` sees them. None if they are too many."""
    wanted = sa.select(rows.entity).limit(MAX_ROWS + 1)
    found = list(eye.scalars(wanted if rows.where is None else wanted.where(rows.where)).unique())
    return None if len(found) > MAX_ROWS else found


def looking(connection: sa.Connection) -> Session:
    """A session of its own over a transaction under way: nothing it loads gets into the user's."""
    return Session(connection, autoflush=False, info={LOOKING: True}, join_transaction_mode="rollback_only")


def having_keys(entity: Mapper[Any], keys: Iterable[Sequence[Any]]) -> list[Any]:
    """Conditions for the rows with these primary keys."""
    columns, all_keys = entity.primary_key, list(keys)
    chunks = [all_keys[at : at + _CHUNK] for at in range(0, len(all_keys), _CHUNK)]
    if len(columns) == 1:
        return [columns[0].in_([key[0] for key in chunk]) for chunk in chunks]
    return [
        sa.or_(*[sa.and_(*[column == part for column, part in zip(columns, key, strict=True)]) for key in chunk])
        for chunk in chunks
    ]


def inserted(statement: Insert, context: Any) -> list[Mapping[str, Any]] | None:
    """The values of the rows that were inserted, by column key. None where the database made them up (INSERT … SELECT)."""
    if statement.select is not None:
        return None
    rows: list[Mapping[str, Any]] = []
    columns = {column.key for column in plain(statement.table).columns}
    for parameters in context.compiled_parameters:
        many: dict[int, dict[str, Any]] = {}
        for name, value in parameters.items():
            key, _, number = name.rpartition("_m")
            if number.isdecimal() and key in columns:
                many.setdefault(int(number), {})[key] = value
            elif name in columns:
                many.setdefault(-1, {})[name] = value
        rows += [many[number] for number in sorted(many)]
    return rows


def having_values(table: Any, rows: Iterable[Mapping[str, Any]], made: Sequence[Any]) -> list[Any] | None:
    """A condition for each inserted row: its primary key where that is known, else all its values. None if it has none."""
    conditions = []
    keys = [column.key for column in table.primary_key]
    for at, row in enumerate(rows):
        identity = made[at] if at < len(made) else None
        if identity is not None and all(part is not None for part in identity):
            conditions.append(sa.and_(*[table.c[key] == part for key, part in zip(keys, identity, strict=True)]))
        elif all(row.get(key) is not None for key in keys):
            conditions.append(sa.and_(*[table.c[key] == row[key] for key in keys]))
        elif told := [
            table.c[key] == value for key, value in row.items() if value is not None and isinstance(table.c[key].type, _COMPARABLE)
        ]:
            conditions.append(sa.and_(*told))
        else:
            return None
    return [sa.or_(*conditions[at : at + _CHUNK]) for at in range(0, len(conditions), _CHUNK)]
