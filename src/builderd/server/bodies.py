"""Request bodies: read up to a limit within the tenant's memory budget, and parsed apart from the event loop."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request

from builderd.application import Application
from builderd.core.errors import BadRequest, RateLimited, TooLarge
from builderd.executions.service import LIMIT, MemoryReservation
from builderd.schemas.shape import Shape
from builderd.server.auth import TheApplication, Writer, operations_of
from builderd.server.body_parser import MEMORY_BYTES, Body, take, take_apart

S = TypeVar("S", bound=Shape)

#: Seconds that the next piece of a body may take, and the whole of it.
PIECE_SECONDS = 20.0
BODY_SECONDS = 300.0
#: A body up to here is not counted in its tenant's memory quota.
COUNTED_BYTES = 1 << 17
#: A body up to here is parsed at once: changing to a thread and back takes longer.
TINY_BYTES = 1 << 12
#: How long a body may wait until other calls of its tenant need less memory, in seconds.
ROOM_SECONDS = 30.0


@dataclass(slots=True)
class Received(Generic[S]):
    """A valid body, and the ``sha256`` of its bytes as they arrived."""

    value: S
    sha256: str
    reservation: MemoryReservation | None = None

    def release(self) -> None:
        """Release the value's memory before the call waits; the value must not be read any more."""
        del self.value
        if self.reservation:
            self.reservation.close()


def json_body(shape: type[S], limit: int) -> Callable[..., AsyncGenerator[Received[S]]]:
    """A dependency that reads this shape from a body of at most ``limit`` bytes, once the caller may write at all."""

    async def receive_written(
        request: Request, application: TheApplication, identity: Writer
    ) -> AsyncGenerator[Received[S]]:
        with operations_of(request).memory.reserve(identity.token.tenant_id) as reservation:
            yield await receive(request, application, shape, limit, reservation)

    return receive_written


async def receive(
    request: Request, application: Application, shape: type[S], limit: int, reservation: MemoryReservation | None = None
) -> Received[S]:
    """The body as this shape, for a caller who is known to be allowed to send one.

    Raises ``RateLimited`` when the tenant's calls hold too much memory for too long.
    """
    check_media_type(request)
    body = await read_body(request, limit, reservation)
    context = {"maximum": application.limits.maximum}
    if body.size <= TINY_BYTES:
        value = take(shape, body.read(), context)
    elif body.size <= MEMORY_BYTES:
        value = await asyncio.to_thread(take, shape, body.read(), context)
    else:
        async with operations_of(request).large_bodies:
            value = await take_apart(shape, body, context)
    return Received(value, body.sha256, reservation)


def optional_json_body(shape: type[S], limit: int) -> Callable[..., Coroutine[Any, Any, Received[S]]]:
    """A dependency like ``json_body``, for small bodies: a missing body counts as an empty object."""

    async def receive(request: Request, application: TheApplication, _: Writer) -> Received[S]:
        body = await read_body(request, limit)
        if body.size:
            check_media_type(request)
        else:
            body = Body(b"{}")
        value = take(shape, body.read(), {"maximum": application.limits.maximum})
        return Received(value, body.sha256)

    return receive


def check_media_type(request: Request) -> None:
    """Raise ``BadRequest`` for anything but JSON in UTF-8; the header is optional."""
    media_type, _, parameters = request.headers.get("content-type", "application/json").partition(";")
    if not re.fullmatch(r"\s*application/(?:json|[\w.!#$&^-]+\+json)\s*", media_type, re.IGNORECASE | re.ASCII):
        raise BadRequest("The body must be JSON: send it with the header Content-Type: application/json.")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise BadRequest("JSON is always in UTF-8: send it so, and leave the charset out.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadRequest("The body must not be compressed: leave Content-Encoding out.")


async def read_body(request: Request, limit: int, reservation: MemoryReservation | None = None) -> Body:
    """Return the body, of at most ``limit`` bytes.

    Raises ``TooLarge``, at once where Content-Length tells, and ``BadRequest`` when it comes too slowly.
    """
    announced = announced_length(request)
    if announced is not None and announced > limit:
        raise _too_large(limit)
    body, counted = Body(), 0
    async for piece in pieces(request, BODY_SECONDS):
        if body.size + len(piece) > limit:
            raise _too_large(limit)
        await body.add(piece)
        if reservation and body.size > COUNTED_BYTES:
            await _count(reservation, body.size - counted)
            counted = body.size
    return body


async def _count(reservation: MemoryReservation, size: int) -> None:
    try:
        async with asyncio.timeout(ROOM_SECONDS):
            await reservation.take(size)
    except TimeoutError:
        raise RateLimited(
            f"Your calls hold {LIMIT} bytes of memory already, in bodies and in answers that are not read: "
            "wait until some of them are done.",
            retry_after=5,
        ) from None


def announced_length(request: Request) -> int | None:
    """Return the body's length in bytes by its Content-Length, None without a valid one."""
    announced = request.headers.get("content-length", "")
    return int(announced[:20]) if announced.isdecimal() else None


async def pieces(request: Request, seconds: float) -> AsyncGenerator[bytes]:
    """Yield the body as it arrives. Raises ``BadRequest`` when it stalls or takes over ``seconds`` in all."""
    stream, deadline = request.stream(), time.monotonic() + seconds
    while True:
        try:
            async with asyncio.timeout(min(PIECE_SECONDS, deadline - time.monotonic())):
                piece = await anext(stream, None)
        except TimeoutError:
            late = seconds if time.monotonic() > deadline else PIECE_SECONDS
            raise BadRequest(f"The body did not arrive in time: it stalled, or took over {late:g} seconds.") from None
        if piece is None:
            return
        yield piece


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is too large: at most {limit} bytes are taken.")
