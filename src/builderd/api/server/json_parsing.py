"""JSON without any of the doors that it leaves open: parsed, and taken as a shape.

What is accepted is I-JSON (RFC 7493): UTF-8, no name twice in an object, no lone surrogates; and no NaN or
Infinity, which are not JSON at all (RFC 8259).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from builderd.domain.errors import BadRequest, TooLarge, ValidationFailed
from builderd.schemas.v1.shape import Shape, field_errors

S = TypeVar("S", bound=Shape)

#: Outside of its strings a body is small; parsed, each of these bytes can become an object of 64.
MAX_STRUCTURE_BYTES = 500_000
MAX_STRINGS = 100_000
MAX_SHOWN = 80

SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def take(shape: type[S], body: bytes, context: dict[str, Any]) -> S:
    """The body as this shape. Raises ``BadRequest``, ``TooLarge`` or ``ValidationFailed``."""
    try:
        return shape.model_validate(parse_object(body), context=context)
    except ValidationError as error:
        raise ValidationFailed(field_errors(error)) from None


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
