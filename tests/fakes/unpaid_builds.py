"""Unpaid builds in memory."""

from __future__ import annotations

from collections.abc import Collection


class FakeUnpaidBuilds:
    def __init__(self) -> None:
        self.kept: set[str] = set()

    async def add(self, build: str) -> None:
        self.kept.add(build)

    async def all(self) -> Collection[str]:
        return list(self.kept)

    async def remove(self, build: str) -> None:
        self.kept.discard(build)
