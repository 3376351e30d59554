"""Invariants of every builder's ledger, after any history."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from tests.application import World

from builderd.builders.model import Builder, JobType, Status
from builderd.money.model import Billing, Segment
from builderd.tokens.limits import BUSY_FACTOR


async def check_ledger(world: World, builder: Builder) -> None:
    """No time is paid twice, running time is paid while a sandbox runs and only then, and an end is an end."""
    builder, segments = await world.builder(builder), await world.segments(builder)
    for earlier, later in pairwise(segments):
        assert earlier.end is not None
        assert earlier.start <= earlier.end <= later.start
    records = [one for one in await world.records(builder) if one.started_at and not one.trial]
    spans = [(record.started_at, record.end.at if record.end else None) for record in records]
    assert _merged(segments) == spans
    assert [(one.start, one.end) for one in segments if one.billing is Billing.FROZEN] == await _frozen(world, builder)
    assert [(one.start, one.end) for one in await world.trials(builder)] == await _trials(world, builder)
    is_over = builder.status in (Status.DELETED, Status.COMPLETED) or (
        builder.job_type is JobType.ONE_TIME and builder.status is Status.FAILED
    )
    if is_over:
        assert all(segment.end for segment in segments)
    elif segments:
        expected = Billing.STOPPED
        if spans and spans[-1][1] is None:
            expected = Billing.FROZEN if any(sandbox.frozen for sandbox in world.running) else Billing.RUNNING
        assert (segments[-1].end, segments[-1].billing) == (None, expected)


Span = tuple[datetime, datetime | None]


def _merged(segments: Sequence[Segment]) -> list[Span]:
    """The spans in which a sandbox was paid for, running or frozen."""
    spans: list[Span] = []
    before = Billing.STOPPED
    for segment in segments:
        if Billing.FROZEN in (segment.billing, before) and segment.billing is not Billing.STOPPED:
            assert spans[-1][1] == segment.start, "it is frozen while it runs"
            spans[-1] = (spans[-1][0], segment.end)
        elif segment.billing is Billing.RUNNING:
            spans.append((segment.start, segment.end))
        before = segment.billing
    return spans


async def _trials(world: World, builder: Builder) -> list[Span]:
    """The spans of ended trials, as far as they are charged."""
    longest = timedelta(seconds=BUSY_FACTOR * world.application.limits.start_timeout)
    ended = [(one.started_at, one.end.at) for one in await world.records(builder) if one.trial and one.end]
    return [(start, min(end, start + longest)) for start, end in ended if start and end]


async def _frozen(world: World, builder: Builder) -> list[Span]:
    """Return the frozen spans by the events alone."""
    spans: list[Span] = []
    for event in await world.events(builder):
        if event.type == "sandbox.frozen":
            spans.append((event.time, None))
        elif event.type in ("sandbox.thawed", "sandbox.ended") and spans and spans[-1][1] is None:
            spans[-1] = (spans[-1][0], event.time)
    return spans
