"""Entry point of alembic: run the migrations in the transaction of the connection passed in the attributes."""

from alembic import context

# No target metadata: names in a revision stay as written, also under a later naming convention of the tables.
context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
