"""Keyword arguments of calls, as type checkers see them (docs/api.md has the rules), and paths of requests.

Paths are made here alone, so that no identifier or file name leads to another resource.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NewType, NotRequired, TypedDict
from urllib.parse import quote, unquote

from builderd.client.errors import ValidationFailed

#: Content of a file: text, bytes, or the API's own object with ``content``, ``encoding`` and ``executable``.
FileContent = str | bytes | Mapping[str, Any]


class StoredCode(TypedDict):
    """Code of a kept version: ``bundle`` as ``Version`` has it, without the files of ``remove``.

    ``result`` is the ``bundle`` that has to come out; anything else is refused.
    """

    bundle: str
    remove: NotRequired[Sequence[str]]
    result: NotRequired[str]


class ResourceOptions(TypedDict, total=False):
    """``cpu`` in vCPU, ``memory`` and ``disk`` in GB (2^30 bytes)."""

    cpu: float
    memory: float
    disk: float


class EventOptions(TypedDict, total=False):
    """Options of ``events``: ``follow`` goes on with new ones, after the id ``after``."""

    follow: bool
    types: str | None
    since: datetime | None
    after: int | None


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
