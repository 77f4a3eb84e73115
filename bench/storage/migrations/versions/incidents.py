"""What went wrong in a run and was mended: run.incidents."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("run") as table:
        table.add_column(sa.Column("incidents", sa.JSON()))
