"""What goes on in a shard, and with a node, is one value each: flags that could contradict each other are gone."""

import json

import sqlalchemy as sa
from alembic import op

from cachekeep.store.earlier import one_change_at_a_time

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    caches = sa.table("caches", sa.column("uid", sa.Text), sa.column("decided", sa.Text))
    for uid, text in op.get_bind().execute(sa.select(caches.c.uid, caches.c.decided)).all():
        decided = json.loads(text)
        one_change_at_a_time(decided)
        op.get_bind().execute(sa.update(caches).where(caches.c.uid == uid).values(decided=json.dumps(decided)))
