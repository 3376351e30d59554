"""Times in requests: RFC 3339 with a time zone, and days."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from builderd.schemas.v1.shape import refusal

RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def _rfc3339(value: Any) -> Any:
    if isinstance(value, datetime):  # from Python callers, never from JSON
        return value
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise refusal("must be a time such as 2026-01-31T12:00:00Z (in a URL, the + of +01:00 is written %2B)")
    return value


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise refusal("must be a time between the years 1 and 9999") from None


def _day(value: Any) -> Any:
    if isinstance(value, date):  # from Python callers, never from JSON
        return value
    if not isinstance(value, str) or not DAY.fullmatch(value):
        raise refusal("must be a day such as 2026-01-31")
    return value


#: A day of the calendar, ``2026-01-31``.
Day = Annotated[date, BeforeValidator(_day)]
#: RFC 3339 with a time zone, brought to UTC.
UtcTime = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_in_utc)]
