"""Visits: when a builder was last visited, as the preview counts it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from math import inf

from builderd.domain.previews import PreviewActivity
from builderd.ports.store import UnitOfWork
from builderd.services.activity import used
from builderd.services.application import Application


async def note(application: Application, within: float = inf) -> None:
    """One reading: builders that were visited within so many seconds get a new ``last_active_at``."""
    activity = await application.previews.activity()
    recent = {host: one for host, one in activity.items() if one.open_connections or one.idle_seconds <= within}
    if recent:
        now = application.clock.now()
        await application.store.write(lambda uow: _write(uow, recent, now))


def _write(uow: UnitOfWork, recent: Mapping[str, PreviewActivity], now: datetime) -> None:
    for host, activity in sorted(recent.items()):
        builder = uow.builders.by_host(host, lock=True)
        if builder is None:
            continue
        at = now if activity.open_connections else now - timedelta(seconds=activity.idle_seconds)
        if builder.last_active_at is None or at - builder.last_active_at >= timedelta(seconds=1):
            used(uow, builder, at)
