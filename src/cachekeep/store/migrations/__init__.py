"""Alembic's scripts. Run by ``store.migrate`` on a connection of its caller; there is no alembic.ini and no other way in."""
