"""Run by alembic: the migration goes through the connection, and so the transaction, that it was handed."""

from alembic import context

# Without the tables of today: what a revision names is called just that, whatever convention they follow later.
context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
