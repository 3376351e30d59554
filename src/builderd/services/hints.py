"""Hints: what the last lines of an app or command show to be missing, and where to add it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from builderd.domain.bundles import folder_of
from builderd.domain.hints import start_hint
from builderd.domain.processes import TIMEOUT_EXIT_CODE
from builderd.domain.versions import Version
from builderd.services.application import Application

#: Characters at the end of a command's output that are read.
TAIL = 4_000


async def hint_of(application: Application, version: Version, lines: Sequence[str]) -> str:
    """Return what the last lines of an app show to be missing, and where to add it; empty if they do not tell."""
    try:
        bundle = await application.bundles.get(version.bundle_hash)
    except KeyError:
        bundle = None
    code = folder_of(bundle, version.settings.root) if bundle else None
    return await asyncio.to_thread(start_hint, lines, code, version.settings.root)


def hint_of_command(exit_code: int, output: str) -> str:
    """Return what a command's output shows to be missing in the app; empty if it ended well or does not tell.

    Anybody may fail commands all day: to read the version's files for each would take seconds of a large one.
    """
    if exit_code in (0, TIMEOUT_EXIT_CODE):
        return ""
    return start_hint(output[-TAIL:].splitlines(), None)
