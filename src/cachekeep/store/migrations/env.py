"""Alembic's entry: on the connection that the caller passed, in the caller's transaction."""

from alembic import context

from cachekeep.store.migrate import VERSION_TABLE
from cachekeep.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
