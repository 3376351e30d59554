"""Run by alembic: the migration goes through the connection, and so the transaction, that it was handed."""

from alembic import context

from builderd.adapters.stores.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
