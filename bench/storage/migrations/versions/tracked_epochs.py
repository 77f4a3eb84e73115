"""Epochs that are not tracked, and the work of each epoch: epoch.validation_* may be null, epoch.train_pflop."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("epoch") as table:
        table.alter_column("validation_clean", existing_type=sa.Double(), nullable=True)
        table.alter_column("validation_robust", existing_type=sa.Double(), nullable=True)
        table.add_column(sa.Column("train_pflop", sa.Double()))
