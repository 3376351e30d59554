"""Times as callers give them in a query."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime

from builderd.wire.v1.shape import refusal


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise refusal("must be a time of this era") from None


#: RFC 3339 with a time zone, brought to UTC.
UtcTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
