"""The tables as they are now. ``migrations/`` creates them; a test holds both to the same schema.

Columns have the names of the domain's fields, so that a row becomes its value by name. Importing this package adds
every table to ``metadata``.
"""

from builderd.store.tables.backups import *  # noqa: F403
from builderd.store.tables.base import metadata as metadata
from builderd.store.tables.builders import *  # noqa: F403
from builderd.store.tables.tenants import *  # noqa: F403
