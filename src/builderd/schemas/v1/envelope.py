"""Envelope of every response: success, page or failure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, PlainSerializer

from builderd.schemas.v1.shape import View

T = TypeVar("T")


def rfc3339(time: datetime) -> str:
    """Return the time in UTC, to the second: ``2026-01-31T12:00:00Z``."""
    # strftime writes years before 1000 with fewer digits.
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


#: RFC 3339 in UTC, to the second: ``2026-01-31T12:00:00Z``.
Time = Annotated[datetime, PlainSerializer(rfc3339, when_used="json")]


class Success(View, Generic[T]):
    """Successful response. ``message`` is one sentence for people; ``data`` is the result."""

    success: Literal[True] = True
    message: str
    data: T


class PageMeta(View):
    """Position in a list: ``page`` counts from 1, ``total`` is the length of the whole list."""

    page: int
    per_page: int
    total: int


class Page(Success[list[T]], Generic[T]):
    """One page of a list."""

    meta: PageMeta


class Failure(View):
    """Error response. ``code`` is for programs; ``message`` says what is wrong and what to do.

    ``errors`` comes with ``validation_error`` alone and maps dotted paths (``files.main.py``) to the reasons;
    ``data`` comes with details of some errors, such as the builder's ``uuid``.
    """

    success: Literal[False] = False
    code: str
    message: str
    errors: dict[str, list[str]] | None = Field(default=None, exclude_if=lambda value: value is None)
    data: dict[str, Any] | None = Field(default=None, exclude_if=lambda value: value is None)
