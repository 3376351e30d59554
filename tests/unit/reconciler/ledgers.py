"""What holds of every builder's ledger, whatever happened to it."""

from __future__ import annotations

from itertools import pairwise

from tests.application import World

from builderd.domain.builders import Builder, JobType, Status
from builderd.domain.prices import Billing


async def check_ledger(world: World, builder: Builder) -> None:
    """No time is paid twice, running time is paid while a sandbox runs and only then, and an end is an end."""
    builder, segments = await world.builder(builder), await world.segments(builder)
    for earlier, later in pairwise(segments):
        assert earlier.end is not None
        assert earlier.start <= earlier.end <= later.start
    records = [record for record in await world.records(builder) if record.started_at]
    spans = [(record.started_at, record.end.at if record.end else None) for record in records]
    assert [(one.start, one.end) for one in segments if one.billing is Billing.RUNNING] == spans
    is_over = builder.status in (Status.DELETED, Status.COMPLETED) or (
        builder.job_type is JobType.ONE_TIME and builder.status is Status.FAILED
    )
    if is_over:
        assert all(segment.end for segment in segments)
    elif segments:
        expected = Billing.RUNNING if spans and spans[-1][1] is None else Billing.STOPPED
        assert (segments[-1].end, segments[-1].billing) == (None, expected)
