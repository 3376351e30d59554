"""Scanners: read a bundle's files with suspicion, somewhere that they can do no harm, and say what they saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from builderd.domain.bundles import Bundle
from builderd.domain.reviews import Hit, ReviewLimits
from builderd.domain.sources import Kind, References

NOTHING_RUN: Mapping[str, Kind] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Scan:
    """``hits`` in no order; ``references`` by path, of the files that could be read as code.

    ``hooks`` are files, and commands, that an installer would run by itself. ``scanners`` as in a report.
    ``failure`` says why the scan is not whole: then nothing may pass for it.
    """

    hits: tuple[Hit, ...]
    references: Mapping[str, References]
    hooks: tuple[str, ...]
    scanners: Mapping[str, str]
    failure: str | None = None


class Scanner(Protocol):
    @property
    def name(self) -> str:
        """Names the scanner and its rules: other rules, another name. Part of the key of a kept report."""

    async def prepare(self) -> None:
        """Start the scanner's warm process; harmless when repeated. A scan without it takes longer."""

    async def scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN) -> Scan:
        """Scan the files within the limits; content never raises.

        Raises ``MachineFault`` where the scanner was killed or cannot be started, again after a retry. ``run`` are
        files, by path, that are started as another kind than their names say.
        """

    async def close(self) -> None:
        """End what was kept warm."""
