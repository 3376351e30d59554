"""Pagination: fetches all pages of a list."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from builderd.schemas.v1.envelope import Page

T = TypeVar("T")
V = TypeVar("V", bound=BaseModel)

MAX_PER_PAGE = 100


class Call(Protocol):
    """Call of the client that returns one page."""

    def __call__(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...


def all_of(call: Call, answer: type[Page[T]], path: str) -> list[T]:
    """Fetch all pages at this path."""
    found: list[T] = []
    number = 1
    while True:
        page = call(answer, "GET", path, params={"page": number, "per_page": MAX_PER_PAGE})
        found += page.data
        if not page.data or len(found) >= page.meta.total:
            return found
        number += 1
