"""What a client's call can end in besides its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builderd.wire.v1.envelope import Failure


class ApiError(Exception):
    """The service refused or failed. ``status`` is None where a stream, already answered 200, told of the failure."""

    def __init__(self, failure: Failure, status: int | None, request_id: str) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.status = status
        self.request_id = request_id
        self.code: str = failure.code
        self.message: str = failure.message
        self.errors: Mapping[str, Sequence[str]] = failure.errors or {}
        self.data: Mapping[str, Any] = failure.data or {}


class NoAnswer(Exception):
    """What answered is no builderd, or the connection ended before the outcome was told."""
