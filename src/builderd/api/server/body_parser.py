"""Large bodies are parsed in a process of their own.

Parsing 29 MB takes up to a second, in calls that keep the interpreter for a tenth of a second each: in a thread of the
service, every request of everybody would wait for several of them. Each body has a child of a process that is started
for the first one (``multiprocessing``, forkserver), so its memory is free again when it is parsed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from builderd.api.server.json_parsing import take
from builderd.api.server.spool import Body
from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.linux.syscalls import die_with_parent
from builderd.schemas.v1.shape import Shape

S = TypeVar("S", bound=Shape)

#: Yield the CPU to the service itself.
NICENESS = 5
#: Imported once, before the children are forked.
_PRELOADED = ["builderd.api.server.body_parser", "builderd.schemas.v1.builders", "builderd.schemas.v1.versions"]
#: Errors by their code, and what each is made of.
_ERRORS: Mapping[str, Callable[[Any], BuilderdError]] = {
    "validation_error": ValidationFailed,
    "bad_request": BadRequest,
    "too_large": TooLarge,
}


class BodyParser:
    """Parses one body after the other."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def take(self, shape: type[S], body: Body, context: dict[str, Any]) -> S:
        """The body as this shape. Raises as ``json_parsing.take``, and ``MachineFault`` when the process fails."""
        async with self._turn:
            self._pool = pool = self._pool or _make_pool()
            content = await asyncio.to_thread(body.read)
            try:
                code, parsed = await asyncio.get_running_loop().run_in_executor(pool, _take, shape, content, context)
            except BrokenProcessPool as error:
                self.close()
                raise MachineFault(
                    "The process that parses large bodies has ended, perhaps for lack of memory: send the request "
                    "again.",
                    retry_after=5,
                ) from error
        if code:
            raise _ERRORS[code](parsed)
        assert isinstance(parsed, shape)
        return parsed

    def close(self) -> None:
        """End the process, once it has parsed what it was given. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _make_pool() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, max_tasks_per_child=1)


def _begin() -> None:
    die_with_parent(signal.SIGKILL)
    os.nice(NICENESS)
    # When memory runs out, the kernel ends this process before the service: its call alone is answered 503.
    Path("/proc/self/oom_score_adj").write_text("1000")


def _take(shape: type[Shape], body: bytes, context: dict[str, Any]) -> tuple[str, object]:
    """Return "" and the parsed value, or the code of the error and its validation errors or message."""
    try:
        return "", take(shape, body, context)
    except ValidationFailed as error:
        return error.code, error.errors
    except (BadRequest, TooLarge) as error:
        return error.code, error.message
