"""The process that parses a large body: the body on its input, the value or an error on its output."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

from builderd.core.errors import BadRequest, TooLarge, ValidationFailed
from builderd.linux.syscalls import die_with_parent
from builderd.schemas.shape import Shape
from builderd.server.body_parser import take, write_answer

#: Yield the CPU to the service itself.
NICENESS = 5


def main() -> None:
    """Parse the body by the shape and the context in the first argument."""
    die_with_parent(signal.SIGKILL)
    os.nice(NICENESS)
    # When memory runs out, the kernel ends this process before the service: its call alone is answered 503.
    Path("/proc/self/oom_score_adj").write_text("1000")
    shape, context = pickle.loads(bytes.fromhex(sys.argv[1]))  # noqa: S301 -- from the service
    write_answer(sys.stdout.buffer, _answer(shape, sys.stdin.buffer.read(), context))


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
