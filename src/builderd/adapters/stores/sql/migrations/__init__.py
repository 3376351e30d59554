"""The history of the schema. Each revision is one file in ``versions/``; none changes once it was released.

A new one: change ``tables.py``, add the file, and let the tests compare both.
"""

from __future__ import annotations

import warnings

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def upgrade(connection: Connection) -> None:
    """Bring the schema to the present revision, within the transaction that the connection is in."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "builderd.adapters.stores.sql:migrations")
    with warnings.catch_warnings():
        # Of the index on an expression, which SQLite keeps by itself while a table is built anew.
        warnings.filterwarnings("ignore", message=".*expression-based index")
        command.upgrade(config, "head")
