"""The tables as they are now. ``migrations/`` creates them; a test holds both to the same schema.

Columns have the names of the domain's fields, so that a row becomes its value by name. Importing this package adds
every table to ``metadata``.
"""

from builderd.database.tables.backups import *  # noqa: F403
from builderd.database.tables.base import metadata as metadata
from builderd.database.tables.builders import *  # noqa: F403
from builderd.database.tables.tenants import *  # noqa: F403
