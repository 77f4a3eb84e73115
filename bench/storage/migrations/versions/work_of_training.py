"""The work of training: run.train_pflop."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("run") as table:
        table.add_column(sa.Column("train_pflop", sa.Double()))
