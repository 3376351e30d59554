"""The history of the schema. Each revision is one file in ``versions/``; none changes once it was released.

To add one, change the package ``tables``, add the file, and let the tests compare both.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from builderd.domain.errors import InvalidState


def revisions() -> Sequence[str]:
    """Return the revisions that this program knows, oldest first."""
    found = ScriptDirectory.from_config(_config()).walk_revisions()
    return [one.revision for one in found][::-1]


def _config(**attributes: Any) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", "builderd.store:migrations")
    return config


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Upgrade the schema to a revision (by default the newest) in the connection's transaction.

    Raises ``InvalidState`` when the schema has a revision that this program does not know.
    """
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - set(revisions())
    if unknown:
        raise InvalidState(
            f"The database has the schema {min(unknown)}, which a newer builderd made: use that one, or a later one."
        )
    config = _config(connection=connection)
    with warnings.catch_warnings():
        # Warned of an index on an expression; SQLite keeps it while a table is rebuilt.
        warnings.filterwarnings("ignore", message=".*expression-based index")
        command.upgrade(config, revision)
