"""The header Idempotency-Key: names a call, so that its retry gets the first call's answer."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request

from builderd.api.server.answers import Answer
from builderd.domain.errors import ValidationFailed
from builderd.domain.ids import TenantId
from builderd.operations.idempotency import Begun, KeptAnswer, Retry
from builderd.operations.operations import Operations

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
ACCEPTED = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


def retry_of(request: Request, tenant_id: TenantId, body_sha256: str) -> Retry | None:
    """Return the retry key of this request, None without one. Raises ``ValidationFailed``.

    Its hash is that of the method, the path with its query, and the body.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not ACCEPTED.fullmatch(key):
        raise ValidationFailed({HEADER: ["must be 1 to 255 printable ASCII characters"]})
    target = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
    text = f"{request.method}\n{target}\n{body_sha256}"
    return Retry(tenant_id, key, hashlib.sha256(text.encode()).hexdigest())


async def first_answer(operations: Operations, retry: Retry | None) -> Answer | Begun | None:
    """Return the first call's answer, or what it began if it got none; None when this is the first call.

    Raises ``Conflict`` as ``Retries.first`` does.
    """
    first = await operations.retries.first(retry) if retry else None
    if isinstance(first, KeptAnswer):
        return Answer(first.status, first.body, {**first.headers, **REPLAYED})
    return first
