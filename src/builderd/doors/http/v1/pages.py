"""Pages: which part of a list is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Query
from pydantic import Field

from builderd.wire.v1.builders import MAX_INTEGER
from builderd.wire.v1.envelope import PageMeta
from builderd.wire.v1.shape import Parameters

T = TypeVar("T")

MAX_PER_PAGE = 100


class PageQuery(Parameters):
    """Which part of the list."""

    page: int = Field(default=1, ge=1, le=MAX_INTEGER)
    per_page: int = Field(default=25, ge=1, le=MAX_PER_PAGE)

    def of(self, total: int) -> PageMeta:
        """This part of a list that is so long."""
        return PageMeta(page=self.page, per_page=self.per_page, total=total)

    def cut(self, found: Sequence[T]) -> Sequence[T]:
        """This part of a whole list."""
        start = (self.page - 1) * self.per_page
        return found[start : start + self.per_page]


ThePage = Annotated[PageQuery, Query()]
