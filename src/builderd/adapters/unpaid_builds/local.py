"""Unpaid builds in a local folder: one empty file each, named by its id."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path


class LocalUnpaidBuilds:
    """Implements ``ports.unpaid_builds.UnpaidBuilds``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def add(self, build: str) -> None:
        await asyncio.to_thread(self._add, build)

    def _add(self, build: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / build).touch(mode=0o600)

    async def all(self) -> Collection[str]:
        return await asyncio.to_thread(self._all)

    def _all(self) -> Collection[str]:
        try:
            return [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []

    async def remove(self, build: str) -> None:
        await asyncio.to_thread((self._folder / build).unlink, missing_ok=True)
