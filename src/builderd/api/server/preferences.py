"""Preferences of the caller: an answer at once (``Prefer``), or a stream of the stages (``Accept``)."""

from __future__ import annotations

from fastapi import Request

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
#: Header of an answer that followed the preference (RFC 7240).
APPLIED = {"Preference-Applied": "respond-async"}


def wants_async(request: Request) -> bool:
    """Return whether ``Prefer: respond-async`` (RFC 7240) is among the caller's preferences."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def wants_events(request: Request) -> bool:
    """Return whether the caller prefers an event stream to JSON (RFC 9110, 12.5.1): by weight, then by order."""
    accepted = [_weight_and_type(part) for part in ",".join(request.headers.getlist("accept")).split(",")]
    known = [(weight, kind) for weight, kind in accepted if kind in (EVENT_STREAM, JSON) and weight > 0]
    if not known:
        return False
    _, kind = max(known, key=lambda pair: pair[0])
    return kind == EVENT_STREAM


def _weight_and_type(part: str) -> tuple[float, str]:
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            return _weight(parameter[2:]), kind
    return 1.0, kind


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
