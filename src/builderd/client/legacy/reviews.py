"""Calls for reviews of code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx2

from builderd.schemas.v1.reviews import NewAcceptance, Review, ReviewAnswer

#: Read timeout; the service ends a review earlier.
REVIEW_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Reviews:
    """Review calls (``Client.reviews``). Methods raise ``ApiError`` and ``NoAnswer``."""

    call: Callable[..., Any]
    request: Callable[..., httpx2.Response]

    def get(self, uuid: str, *, version: int | None = None) -> Review:
        """Return the review of a version, by default the current one."""
        answer: ReviewAnswer = self.call(ReviewAnswer, "GET", _path(uuid), params=_of(version))
        return answer.data

    def sarif(self, uuid: str, *, version: int | None = None) -> bytes:
        """Return the review as SARIF 2.1.0."""
        return self.request("GET", _path(uuid), params={"format": "sarif", **_of(version)}).content

    def run(self, uuid: str) -> Review:
        """Review the current version's code again."""
        answer: ReviewAnswer = self.call(ReviewAnswer, "POST", _path(uuid), timeout=REVIEW_SECONDS)
        return answer.data

    def accept(self, uuid: str, fingerprint: str, reason: str, *, expires: datetime | None = None) -> Review:
        """Accept a finding; one that blocks needs an admin's token and a date."""
        new = NewAcceptance(fingerprint=fingerprint, reason=reason, expires=expires)
        answer: ReviewAnswer = self.call(
            ReviewAnswer, "POST", f"{_path(uuid)}/accept", json=new.model_dump(mode="json", exclude_none=True)
        )
        return answer.data


def _path(uuid: str) -> str:
    return f"/api/v1/builders/{uuid}/review"


def _of(version: int | None) -> dict[str, int]:
    return {} if version is None else {"version": version}
