"""The process that parses large bodies: a shape and a body come on its input, the value or an error goes out."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from typing import Any

from builderd.api.server.body_parser import read_message, write_message
from builderd.api.server.json_parsing import take
from builderd.domain.errors import BadRequest, TooLarge, ValidationFailed
from builderd.schemas.v1.shape import Shape

#: Yield the CPU to the service itself.
NICENESS = 5


def main() -> None:
    """Answer until the input ends."""
    os.nice(NICENESS)
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            shape, context = pickle.loads(read_message(sys.stdin.buffer))  # noqa: S301 -- from the service
            body = read_message(sys.stdin.buffer)
            write_message(sys.stdout.buffer, pickle.dumps(_answer(shape, body, context)))


def _answer(shape: type[Shape], body: bytes, context: dict[str, Any]) -> tuple[str, object]:
    """Return ("value", the parsed value), or the error's code with its validation errors or message."""
    try:
        return "value", take(shape, body, context)
    except ValidationFailed as error:
        return error.code, error.errors
    except (BadRequest, TooLarge) as error:
        return error.code, error.message


if __name__ == "__main__":
    main()
