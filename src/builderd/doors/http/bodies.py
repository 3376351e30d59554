"""Request bodies: read up to a limit, and taken as JSON without any of the doors that JSON leaves open.

What is accepted is I-JSON (RFC 7493): UTF-8, no name twice in an object, no lone surrogates; and no NaN or
Infinity, which are not JSON at all (RFC 8259).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from fastapi import Request
from pydantic import ValidationError

from builderd.domain.errors import BadRequest, TooLarge, ValidationFailed
from builderd.doors.http.auth import TheApplication, Writer
from builderd.services.application import Application
from builderd.wire.v1.shape import Shape, field_errors

S = TypeVar("S", bound=Shape)

#: How long the next piece of a body may take, and the whole of it, in seconds.
PIECE_SECONDS = 20.0
BODY_SECONDS = 300.0
#: Outside of its strings a body is small; parsed, each of these bytes can become an object of 64.
MAX_STRUCTURE_BYTES = 500_000
MAX_STRINGS = 100_000
MAX_SHOWN = 80

SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Received(Generic[S]):
    """A valid body; ``sha256`` is of its bytes as they came."""

    value: S
    sha256: str


def json_body(shape: type[S], limit: int) -> Callable[..., Coroutine[Any, Any, Received[S]]]:
    """A dependency that reads this shape from a body of at most ``limit`` bytes, once the caller may write at all."""

    async def receive_written(request: Request, application: TheApplication, _: Writer) -> Received[S]:
        return await receive(request, application, shape, limit)

    return receive_written


async def receive(request: Request, application: Application, shape: type[S], limit: int) -> Received[S]:
    """The body as this shape, for a caller who is known to be allowed to send one."""
    check_media_type(request)
    body = await read_body(request, limit)
    context = {"maximum": application.limits.maximum}
    # A large body takes a while to be parsed: other requests go on meanwhile.
    return await asyncio.to_thread(_take, shape, body, context)


def optional_json_body(shape: type[S], limit: int) -> Callable[..., Coroutine[Any, Any, Received[S]]]:
    """The same where no body at all is as good as an empty object."""

    async def receive(request: Request, application: TheApplication, _: Writer) -> Received[S]:
        body = await read_body(request, limit)
        if body:
            check_media_type(request)
        return _take(shape, body or b"{}", {"maximum": application.limits.maximum})

    return receive


def check_media_type(request: Request) -> None:
    """Raises ``BadRequest`` for anything but plain JSON in UTF-8; a request may leave the header out."""
    media_type, _, parameters = request.headers.get("content-type", "application/json").partition(";")
    if not re.fullmatch(r"\s*application/(?:json|[\w.!#$&^-]+\+json)\s*", media_type, re.IGNORECASE | re.ASCII):
        raise BadRequest("The body must be JSON: send it with the header Content-Type: application/json.")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise BadRequest("JSON is always in UTF-8: send it so, and leave the charset out.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadRequest("The body must not be compressed: leave Content-Encoding out.")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of which never more than the limit and one piece are held.

    Raises ``TooLarge``, at once where Content-Length tells, and ``BadRequest`` when it comes too slowly.
    """
    announced = announced_length(request)
    if announced is not None and announced > limit:
        raise _too_large(limit)
    body = bytearray()
    async for piece in pieces(request, BODY_SECONDS):
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def announced_length(request: Request) -> int | None:
    """Of the body in bytes, as its head has it."""
    announced = request.headers.get("content-length", "")
    return int(announced[:20]) if announced.isdecimal() else None


async def pieces(request: Request, seconds: float) -> AsyncGenerator[bytes]:
    """The body as it comes. Raises ``BadRequest`` when it stalls, or takes longer than that in all."""
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


def _take(shape: type[S], body: bytes, context: dict[str, Any]) -> Received[S]:
    try:
        value = shape.model_validate(parse_object(body), context=context)
    except ValidationError as error:
        raise ValidationFailed(field_errors(error)) from None
    return Received(value, hashlib.sha256(body).hexdigest())


class Written(float):
    """A number that remembers how it was written, so that ``3.10`` as an environment variable is not ``3.1``."""

    __slots__ = ("text",)
    text: str

    def __str__(self) -> str:
        return self.text


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of this body. Raises ``BadRequest``, which says where the fault is."""
    if not body:
        raise BadRequest("The body is empty: send a JSON object, {…}.")
    _check_structure(body)
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not JSON: byte {error.start} is not UTF-8.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"The body is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at {where}.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except ValueError:
        raise BadRequest("The body has a number with too many digits.") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object: {…}.")
    if SURROGATE_ESCAPE.search(body):
        _check_surrogates(value)
    return value


def _check_structure(body: bytes) -> None:
    # Without the escaped ones every quote begins or ends a string, and each second piece lies outside.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    quotes = plain.count(b'"')
    if quotes > 2 * MAX_STRINGS or sum(map(len, plain.split(b'"')[::2])) > MAX_STRUCTURE_BYTES:
        raise TooLarge(
            f"The body has too many parts: at most {MAX_STRINGS} texts, names included, and {MAX_STRUCTURE_BYTES} "
            "bytes outside of them are taken. What is large in it must be the contents of files."
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadRequest(f"The body has {_shown(twice)} twice in one object: leave one of them out.")
    return value


def _float(text: str) -> Written:
    value = Written(text)
    if not math.isfinite(value):
        raise BadRequest(f"The body has a number that is too large: {_shown(text)}.")
    value.text = text
    return value


def _no_constant(text: str) -> NoReturn:
    raise BadRequest(f"The body is not JSON: {text} is not a JSON number.")


def _check_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest(r"The body has half of a surrogate pair (\ud800 to \udfff alone), which is no text.") from None


def _shown(text: str) -> str:
    cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return json.dumps(cut)
