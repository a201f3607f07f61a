"""Durations are counted by clocks that nobody sets: those that were begun by the wall clock were begun nobody knows when."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

UNKNOWN = {"boot": "", "seconds": 0.0}
DATED = ("condemned_at", "ordered_at", "starved_since", "resharded_at")


def upgrade() -> None:
    caches = sa.table("caches", sa.column("uid", sa.Text), sa.column("decided", sa.Text))
    rows = op.get_bind().execute(sa.select(caches.c.uid, caches.c.decided)).all()
    for uid, text in rows:
        decided = json.loads(text)
        for part in (decided, *decided.get("nodes", ()), *decided.get("successors", ()), *decided.get("shards", ())):
            part.update({name: UNKNOWN for name in DATED if isinstance(part.get(name), str)})
        op.get_bind().execute(sa.update(caches).where(caches.c.uid == uid).values(decided=json.dumps(decided)))
    op.drop_table("holders")  # nobody lives while tables are changed
    op.create_table(
        "holders",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("ttl", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("holder", name="pk_holders"),
    )
