"""The SDK. Import ``Builderd`` and ``AsyncBuilderd`` from ``builderd``.

``Client`` and its exceptions of earlier releases stay importable from here for one release, with a warning.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from builderd.client.legacy import ApiError as ApiError
    from builderd.client.legacy import Client as Client
    from builderd.client.legacy import NoAnswer as NoAnswer
    from builderd.client.legacy import Stage as Stage

__all__ = ["ApiError", "Client", "NoAnswer", "Stage"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"builderd.client.{name} will be removed: use builderd.Builderd and its errors (docs/sdk.md)",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module("builderd.client.legacy"), name)
