"""Reviews, as the client asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from builderd.wire.v1.reviews import NewAcceptance, Review, ReviewAnswer

#: A review takes some seconds at most; the service itself gives it up then.
REVIEW_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Reviews:
    """``call`` and ``request`` are the client's own. Methods raise ``ApiError`` and ``NoAnswer``, as its others do."""

    call: Callable[..., Any]
    request: Callable[..., httpx.Response]

    def get(self, uuid: str, *, version: int | None = None) -> Review:
        """The review of a version, the current one unless another is named."""
        answer: ReviewAnswer = self.call(ReviewAnswer, "GET", _path(uuid), params=_of(version))
        return answer.data

    def sarif(self, uuid: str, *, version: int | None = None) -> bytes:
        """The same as SARIF 2.1.0."""
        return self.request("GET", _path(uuid), params={"format": "sarif", **_of(version)}).content

    def run(self, uuid: str) -> Review:
        """Review the current version's code anew."""
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
