"""Exceptions of client calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builderd.schemas.v1.envelope import Failure


class ApiError(Exception):
    """Error response of the service. ``status`` is None for a failure inside a stream, whose status was 200."""

    def __init__(self, failure: Failure, status: int | None, request_id: str) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.status = status
        self.request_id = request_id
        self.code: str = failure.code
        self.message: str = failure.message
        self.errors: Mapping[str, Sequence[str]] = failure.errors or {}
        self.data: Mapping[str, Any] = failure.data or {}


class NoAnswer(Exception):
    """No valid response: not a builderd, or the connection ended early."""
