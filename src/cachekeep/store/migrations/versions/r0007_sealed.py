"""Passwords are sealed, and part of what is wanted."""

import json

import msgspec
import sqlalchemy as sa
from alembic import context, op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    seal = context.config.attributes["seal"]
    caches = sa.table("caches", sa.column("uid", sa.Text), sa.column("admin_password", sa.Text), sa.column("wanted", sa.Text))
    rows = op.get_bind().execute(sa.select(caches.c.uid, caches.c.admin_password, caches.c.wanted)).all()
    for uid, password, text in rows:
        wanted = json.loads(text)
        if wanted["engine"] != "memcached":  # it has no users
            wanted["credentials"] = [msgspec.to_builtins(seal(uid, password))]
        change = {"wanted": json.dumps(wanted), "admin_password": ""}  # overwritten, too: not every database forgets what it drops
        op.get_bind().execute(sa.update(caches).where(caches.c.uid == uid).values(**change))
    op.drop_column("caches", "admin_password")
