"""Blocking calls: requests that wait for an outcome. Each tenant may have a limited number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from builderd.api.server.auth import Identity, operations_of
from builderd.api.server.preferences import wants_async

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
        answer.cancel()
        left.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def _has_left(request: Request) -> bool:
    """Wait until the caller leaves and return True; return False for one that is still sending a body."""
    message: Message = {"type": "http.request"}
    while message["type"] == "http.request" and not message.get("more_body"):
        message = await request.receive()
    return bool(message["type"] == "http.disconnect")
