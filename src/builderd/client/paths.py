"""Paths of requests. They are made here alone, so that no identifier or file name leads to another resource."""

from __future__ import annotations

from typing import NewType
from urllib.parse import quote, unquote

from builderd.client.errors import ValidationFailed

#: Path of a request, quoted. Calls take nothing else: what makes one has checked each segment.
RequestPath = NewType("RequestPath", str)

API = "/api/v1"
HEALTH, READINESS, OPENAPI, METRICS = map(RequestPath, ("/healthz", "/readyz", "/openapi.json", "/metrics"))
#: Calls outside of the API.
OUTSIDE = (HEALTH, READINESS, OPENAPI, METRICS)


def api_path(*segments: str | int) -> RequestPath:
    """Return the path of a call of the API; give a file's path as its segments.

    Raises ``ValidationFailed`` for a segment that would lead elsewhere: an empty one, ``.``, ``..``, or one with a
    ``/``, which the service does not tell from one between segments.
    """
    return RequestPath("/".join([API, *map(_quoted, segments)]))


def written_path(path: str) -> RequestPath:
    """Return a path that a caller has written and quoted, with or without ``/api/v1``. Raises ``ValidationFailed``."""
    if path in OUTSIDE:
        return RequestPath(path)
    if not path.isprintable():
        raise _refused(path, "quote what is not printable")
    path = path.removeprefix(API)
    for segment in unquote(path.partition("?")[0].removeprefix("/")).split("/"):
        _quoted(segment)
    return RequestPath(f"{API}/{path.removeprefix('/')}")


def _quoted(segment: str | int) -> str:
    text = str(segment)
    if text in {"", ".", ".."} or "/" in text:
        raise _refused(text, "an identifier, and each part of a path, must not be empty, . or .., and has no /")
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise _refused(text, "it must be valid Unicode text") from None


def _refused(text: str, why: str) -> ValidationFailed:
    return ValidationFailed("validation_error", f"Nothing was sent for {text!r}: {why}.")
