"""How Alembic migrates a store: on the connection, and in the transaction, that `bench.storage.database` opens."""

from alembic import context

from bench.storage.schema import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
