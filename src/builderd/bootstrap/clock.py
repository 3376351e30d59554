"""Look for times that a wrong clock moved, and mend them, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from builderd.adapters.clocks.system import SystemClock
from builderd.bootstrap.data_directory import lock
from builderd.bootstrap.database import existing_store, refuse_another_database
from builderd.settings import Settings
from builderd.store import Store

_MEMORY = "clock.json"


async def describe_clock(settings: Settings) -> Sequence[str]:
    """Return lines on a clock that was set and on rows after its time; none for neither. Reads all rows."""
    memory = settings.data_dir / _MEMORY
    if not memory.is_file():
        return []
    refuse_another_database(settings)
    fault = SystemClock(memory, begins=False).fault()
    opened = Store(settings.database)
    try:
        later = await opened.read(lambda uow: uow.stored_times.later_than(datetime.now(UTC)))
    finally:
        await opened.close()
    lines = [f"clock: {fault}"] if fault else []
    if later:
        lines.append(
            f"clock: {sum(later.values())} times lie in the future ({', '.join(sorted(later))}). If the machine's "
            "clock is right, stop the service and run `builderd clock repair`."
        )
    return lines


async def repair_clock(settings: Settings, confirm: Callable[[datetime, int], None]) -> Mapping[str, int]:
    """Mend times after the machine's; return how many were, by column. ``confirm`` raises to change nothing.

    Raises ``EngineUnavailable`` while the service runs, and ``InvalidState`` where there is no database.
    """
    async with existing_store(settings) as opened:
        with lock(settings.data_dir):
            now = datetime.now(UTC)
            later = await opened.read(lambda uow: uow.stored_times.later_than(now))
            confirm(now, sum(later.values()))
            changed = await opened.write(lambda uow: uow.stored_times.repair(now))
            SystemClock(settings.data_dir / _MEMORY).forget_latest()
            return changed
