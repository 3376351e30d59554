"""Builds that run, in the store: a crash of the service leaves them to the next one, which charges them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.prices import OpenBuild


class OpenBuilds(Protocol):
    def add(self, build: OpenBuild) -> None: ...
    def seen(self, build: str, at: datetime) -> None:
        """Record that it still runs; do nothing once it is removed."""

    def all(self) -> Sequence[OpenBuild]: ...
    def remove(self, build: str) -> bool:
        """Remove it; return False if it was removed before."""
