"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from builderd.client._sync.transport import Transport, parsed

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

PER_PAGE = 100


class Pages(Generic[T]):
    """List of the service. Iterate over it: each page is fetched when it is needed."""

    def __init__(
        self, transport: Transport, path: str, read: Callable[[Any], T], params: Mapping[str, Any] | None = None
    ) -> None:
        self._transport = transport
        self._path = path
        self._read = read
        self._params = params or {}

    def page(self, number: int = 1, per_page: int = PER_PAGE) -> tuple[list[T], int]:
        """Return one page and the length of the whole list."""
        params = {**self._params, "page": number, "per_page": per_page}
        answer = self._transport.json("GET", self._path, params=params)
        return [self._read(one) for one in answer["data"]], answer["meta"]["total"]

    def all(self) -> list[T]:
        """Return the whole list."""
        return [one for one in self]

    def __iter__(self) -> Iterator[T]:
        number, seen = 1, 0
        while True:
            found, total = self.page(number)
            for one in found:
                yield one
            seen, number = seen + len(found), number + 1
            if not found or seen >= total:
                return


def reader(shape: type[M]) -> Callable[[Any], M]:
    """Return the function that reads one entry of a list."""
    return lambda value: parsed(shape, value)
