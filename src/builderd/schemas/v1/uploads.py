"""Uploads: code too large for JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.files import SHA256
from builderd.schemas.v1.shape import JsonInt, Shape, Success, Time, View, checked_by


def _sha256_error(text: str) -> str | None:
    return None if SHA256.fullmatch(text.lower()) else "must be a sha256: 64 hex characters"


Sha256 = Annotated[str, checked_by(_sha256_error), Field(json_schema_extra={"pattern": "^[0-9A-Fa-f]{64}$"})]


class NewUpload(Shape):
    """Size and hash of a new upload; both are optional and detect a broken transfer early."""

    size: JsonInt | None = Field(default=None, ge=1, le=2**53, description="How many bytes it has.")
    sha256: Sha256 | None = Field(default=None, description="Of its bytes; checked when all of them have arrived.")


class UploadPlace(View):
    """Upload URL: it needs no token, since it contains a secret."""

    upload_id: str
    upload_url: str
    expires_at: Time


class UploadPlaceAnswer(Success[UploadPlace]):
    """Response with an upload's URL."""


class UploadState(View):
    """State of an upload: ``received`` bytes; ``complete`` once it can be deployed."""

    upload_id: str
    received: int
    size: int | None
    complete: bool
    expires_at: Time


class UploadAnswer(Success[UploadState]):
    """One upload."""
