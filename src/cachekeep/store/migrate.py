"""Brings a database to the schema of this program, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from cachekeep.errors import Unusable
from cachekeep.model import Credential
from cachekeep.store.tables import SCHEMA, metadata

VERSION_TABLE = "cachekeep_schema"
_SEALED = "0007"


Seal = Callable[[str, str], Credential]
"""A cache's uid and its password, from a time when that was kept as it is → as it is kept now."""


def migrate(connection: sa.Connection, shown: str, seal: Seal) -> bool:
    """Create or upgrade all tables inside the caller's transaction. ``shown`` names the database in errors. Whether there is
    something behind the tables that is not to stay: passwords that were not sealed.

    Raises ``Unusable`` if the database was written by a newer program, or holds tables of ours without saying of which revision.
    """
    found = set(sa.inspect(connection).get_table_names())
    revision: str | None = None
    if VERSION_TABLE in found:
        revision = connection.execute(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))).scalar()
    if revision == SCHEMA:
        return False
    if revision is None and (taken := found & set(metadata.tables)):
        raise Unusable(f"{shown} is not a Cachekeep database: it already has a table named {min(taken)}. Use an empty one.")

    # Imported only when there is something to do: it costs a fifth of a second of every start.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise Unusable(
            f"{shown} was written by a newer Cachekeep (schema {revision}; this one knows up to {SCHEMA}). "
            "It was left as it is: upgrade Cachekeep, or use another database."
        )
    config.attributes["connection"] = connection
    config.attributes["seal"] = seal
    command.upgrade(config, "head")
    return revision is not None and revision < _SEALED
