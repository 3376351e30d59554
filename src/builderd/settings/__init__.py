"""Settings: their names, defaults and validation, and their conversion into values of the domain and the services.

``builderd.bootstrap.configuration`` loads them; no other code reads the environment.
"""

from __future__ import annotations

from builderd.settings.sections import BackupSettings, OpenIdSettings, ReviewSettings, VaultSettings
from builderd.settings.settings import DEFAULT_DATA_DIR, FILE_NAME, PREFIX, Settings

__all__ = [
    "DEFAULT_DATA_DIR",
    "FILE_NAME",
    "PREFIX",
    "BackupSettings",
    "OpenIdSettings",
    "ReviewSettings",
    "Settings",
    "VaultSettings",
]
