"""Each errand that has been taken up has a job of its own."""

import json

import sqlalchemy as sa
from alembic import op

from cachekeep.store.earlier import a_job_for_each_errand

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    caches = sa.table("caches", sa.column("uid", sa.Text), sa.column("wanted", sa.Text), sa.column("decided", sa.Text))
    for uid, wanted, text in op.get_bind().execute(sa.select(caches.c.uid, caches.c.wanted, caches.c.decided)).all():
        decided = json.loads(text)
        a_job_for_each_errand(decided, json.loads(wanted).get("errands", []))
        op.get_bind().execute(sa.update(caches).where(caches.c.uid == uid).values(decided=json.dumps(decided)))
