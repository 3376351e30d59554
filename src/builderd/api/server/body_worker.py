"""The process that parses large bodies: a shape and a body come on its input, the value or an error goes out."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from builderd.api.server.body_parser import read_message, take, write_answer
from builderd.domain.errors import BadRequest, TooLarge, ValidationFailed
from builderd.linux.syscalls import die_with_parent
from builderd.schemas.v1.shape import Shape

#: Yield the CPU to the service itself.
NICENESS = 5


def main() -> None:
    """Answer until the input ends. A child reads each request and answers it; the parent reads nothing."""
    os.nice(NICENESS)
    # When memory runs out, the kernel ends this process before the service: its call alone is answered 503.
    Path("/proc/self/oom_score_adj").write_text("1000")
    while (child := os.fork()) and os.waitpid(child, 0)[1] == 0:
        pass
    if not child:
        die_with_parent(signal.SIGKILL)
        os._exit(_answer_one())


def _answer_one() -> int:
    """Return the exit status, 0 once a request was answered."""
    with suppress(EOFError, BrokenPipeError):
        shape, context = pickle.loads(read_message(sys.stdin.buffer))  # noqa: S301 -- from the service
        body = read_message(sys.stdin.buffer)
        write_answer(sys.stdout.buffer, _answer(shape, body, context))
        return 0
    return 1


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
