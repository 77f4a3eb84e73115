"""The first schema: protocol, run, epoch, checkpoint, outcome."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "protocol",
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_protocol"),
    )
    op.create_table(
        "run",
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("training_fingerprint", sa.String(64), nullable=False),
        sa.Column("protocol_fingerprint", sa.String(64), nullable=False),
        sa.Column("suite", sa.String(100), nullable=False),
        sa.Column("method", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("custom", sa.Boolean(), nullable=False),
        sa.Column("origin", sa.String(20)),
        sa.Column("final_is_best", sa.Boolean(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("diverged_in", sa.Integer()),
        sa.Column("classes", sa.Integer()),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("folder", sa.String(255), nullable=False),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("train_seconds", sa.Double()),
        sa.Column("track_seconds", sa.Double()),
        sa.Column("evaluation_seconds", sa.Double()),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("done_sha256", sa.String(64)),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_run"),
        sa.ForeignKeyConstraint(["protocol_fingerprint"], ["protocol.fingerprint"], name="fk_run_protocol"),
    )
    op.create_index("ix_run_protocol_fingerprint", "run", ["protocol_fingerprint"])
    op.create_index("ix_run_training_fingerprint", "run", ["training_fingerprint"])
    op.create_table(
        "epoch",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lr", sa.Double(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=False),
        sa.Column("train_robust", sa.Double(), nullable=False),
        sa.Column("validation_clean", sa.Double(), nullable=False),
        sa.Column("validation_robust", sa.Double(), nullable=False),
        sa.Column("test_clean", sa.Double()),
        sa.Column("test_robust", sa.Double()),
        sa.Column("train_seconds", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run", "epoch", name="pk_epoch"),
        sa.ForeignKeyConstraint(["run"], ["run.fingerprint"], name="fk_epoch_run", ondelete="CASCADE"),
    )
    op.create_table(
        "checkpoint",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("file", sa.String(100), nullable=False),
        sa.PrimaryKeyConstraint("run", "name", name="pk_checkpoint"),
        sa.ForeignKeyConstraint(["run"], ["run.fingerprint"], name="fk_checkpoint_run", ondelete="CASCADE"),
    )
    op.create_table(
        "outcome",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("checkpoint", sa.String(20), nullable=False),
        sa.Column("key", sa.String(100), nullable=False),
        sa.Column("attack", sa.String(20), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("identity", sa.JSON(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("right", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=False),
        sa.Column("correct", sa.LargeBinary(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run", "checkpoint", "key", name="pk_outcome"),
        sa.ForeignKeyConstraint(
            ["run", "checkpoint"],
            ["checkpoint.run", "checkpoint.name"],
            name="fk_outcome_checkpoint",
            ondelete="CASCADE",
        ),
    )
