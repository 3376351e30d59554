"""Headers by which a caller chooses its answer, and calls that wait for an outcome."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from builderd.core.errors import ValidationFailed
from builderd.core.ids import TenantId
from builderd.core.loops import end_tasks
from builderd.server.auth import Identity, operations_of
from builderd.server.idempotency import Retry

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
#: RFC 9110, 12.4.2.
_WEIGHT = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
#: Header of an answer that followed the preference (RFC 7240).
APPLIED = {"Preference-Applied": "respond-async"}


def wants_async(request: Request) -> bool:
    """Return whether ``Prefer: respond-async`` (RFC 7240) is among the caller's preferences."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def wants_events(request: Request) -> bool:
    """Return whether the caller prefers an event stream to JSON (RFC 9110, 12.5.1): by weight, then by order."""
    best, preferred = 0.0, ""
    for part in ",".join(request.headers.getlist("accept")).lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
        weight = 1.0 if not weights else float(weights[0]) if _WEIGHT.fullmatch(weights[0]) else 0.0
        if kind in (EVENT_STREAM, JSON) and weight > best:
            best, preferred = weight, kind
    return preferred == EVENT_STREAM


T = TypeVar("T")


def count_blocking_call(request: Request, identity: Identity) -> AbstractContextManager[None]:
    """Count a call among its tenant's blocking calls; a call that is answered at once is not counted.

    Call it before anything is written: it raises ``RateLimited`` at the limit.
    """
    if wants_async(request):
        return nullcontext()
    return operations_of(request).blocking_calls.acquire(identity.token.tenant_id)


async def until_disconnect(request: Request, coming: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``coming``. Raises ``ClientDisconnect`` when the caller disconnects before.

    Only for a wait that changes nothing by itself. The request's body must have been read.
    """
    answer, left = asyncio.create_task(coming), asyncio.create_task(_has_left(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and left.result():
            raise ClientDisconnect
        return await answer
    finally:
        await end_tasks(answer, left)


async def _has_left(request: Request) -> bool:
    """Wait until the caller leaves and return True; return False for one that is still sending a body."""
    message: Message = {"type": "http.request"}
    while message["type"] == "http.request" and not message.get("more_body"):
        message = await request.receive()
    return bool(message["type"] == "http.disconnect")


KEY_HEADER = "Idempotency-Key"
KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


def retry_of(request: Request, tenant_id: TenantId, body_sha256: str) -> Retry | None:
    """Return the retry key of this request, None without one. Raises ``ValidationFailed``.

    Its hash is that of the method, the path with its query, and the body.
    """
    key = request.headers.get(KEY_HEADER)
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise ValidationFailed({KEY_HEADER: ["must be 1 to 255 printable ASCII characters"]})
    target = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
    text = f"{request.method}\n{target}\n{body_sha256}"
    return Retry(tenant_id, key, hashlib.sha256(text.encode()).hexdigest())
