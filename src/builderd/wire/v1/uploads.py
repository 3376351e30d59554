"""Uploads: code too large for JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.uploads import SHA256
from builderd.wire.v1.envelope import Success, Time
from builderd.wire.v1.shape import JsonInt, Shape, View, must_pass


def _sha256_fault(text: str) -> str | None:
    return None if SHA256.fullmatch(text.lower()) else "must be a sha256: 64 hex characters"


Sha256 = Annotated[str, must_pass(_sha256_fault), Field(json_schema_extra={"pattern": "^[0-9A-Fa-f]{64}$"})]


class NewUpload(Shape):
    """Both may be left out; with them, it is found out early when something goes wrong."""

    size: JsonInt | None = Field(default=None, ge=1, le=2**53, description="How many bytes it has.")
    sha256: Sha256 | None = Field(default=None, description="Of its bytes; checked when all of them have arrived.")


class UploadPlace(View):
    """Where to send the bytes: the URL needs no token, and holds a secret."""

    upload_id: str
    upload_url: str
    expires_at: Time


class UploadPlaceAnswer(Success[UploadPlace]):
    """A place for an upload."""


class UploadState(View):
    """``received`` bytes are there; ``complete`` once it can be deployed."""

    upload_id: str
    received: int
    size: int | None
    complete: bool
    expires_at: Time


class UploadAnswer(Success[UploadState]):
    """One upload."""
