"""Open commands of sandboxes: begun, counted, and ended when an earlier service left them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator

from builderd.adapters.engines.oci.runtime.cgroups import INNER
from builderd.adapters.engines.oci.runtime.execute import Execution
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.domain.errors import EngineUnavailable, InvalidState
from builderd.domain.processes import ProcessSpec

log = logging.getLogger(__name__)

#: Time to kill a command that an earlier service left; the next service tries again.
_LEFT_OVER_SECONDS = 30.0
#: Open commands of one sandbox: each has pipes on the host, which no limit of the sandbox counts.
MAX_OPEN = 64


@contextlib.asynccontextmanager
async def execution(runs: Runs, record: Record, spec: ProcessSpec) -> AsyncIterator[Execution]:
    """Hold one of the sandbox's command places while the context lasts."""
    begun = Execution(runs, record, spec)
    await begun.begin()
    try:
        yield begun
    finally:
        await asyncio.shield(begun.end())


async def end_left_over(runs: Runs, record: Record) -> None:
    """Kill commands that were open when an earlier service was killed: nobody reads them, and their timeouts are gone.

    The document of a command is removed at its end, so what an ended command left in the background goes on; so does
    what outlives the service.
    """
    if not runs.is_running(record) or runs.freezing.is_frozen(record):
        return
    for document in runs.config.bundle(record.id).glob(f"{INNER}*.json"):
        if document.stem.endswith(".kill"):
            document.unlink(missing_ok=True)
            continue
        try:
            async with asyncio.timeout(_LEFT_OVER_SECONDS):
                await Execution(runs, record, ProcessSpec(("true",)), document.stem).end_left_over()
        except (TimeoutError, EngineUnavailable) as error:
            log.warning("command of an earlier service not killed sandbox=%s error=%s", record.id, error)
        else:
            log.info("command of an earlier service ended sandbox=%s command=%s", record.id, document.stem)


async def read_all(begun: Execution, limit_bytes: int) -> bytes:
    """Read its output, up to a limit in bytes."""
    output = b""
    while len(output) < limit_bytes and (piece := await begun.read()):
        output += piece
    return output


class Executions:
    """Open commands, at most ``MAX_OPEN`` for each sandbox."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def open(self, runs: Runs, record: Record, spec: ProcessSpec) -> AsyncIterator[Execution]:
        if self._open[record.id] >= MAX_OPEN:
            raise InvalidState(f"{MAX_OPEN} commands run in the builder already: wait until one of them has ended.")
        self._open[record.id] += 1
        try:
            async with execution(runs, record, spec) as begun:
                yield begun
        finally:
            self._open[record.id] -= 1
            self._open += Counter()
