"""The mode is said, and what belongs to a switch, to slots on their way, or to who led before is together."""

import json

import sqlalchemy as sa
from alembic import op

from cachekeep.store.earlier import a_mode_and_a_switch

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    caches = sa.table("caches", sa.column("uid", sa.Text), sa.column("decided", sa.Text))
    for uid, text in op.get_bind().execute(sa.select(caches.c.uid, caches.c.decided)).all():
        decided = json.loads(text)
        a_mode_and_a_switch(decided)
        op.get_bind().execute(sa.update(caches).where(caches.c.uid == uid).values(decided=json.dumps(decided)))
