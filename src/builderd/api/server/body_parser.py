"""Large bodies are parsed in a process of their own.

Parsing 29 MB takes up to a second, in calls that keep the interpreter for a tenth of a second each: in a thread of the
service, every request of everybody would wait for several of them. Each body has a child of a process that is started
for the first one (``multiprocessing``, forkserver), so its memory is free again when it is parsed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from pydantic import ValidationError

from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.linux.syscalls import die_with_parent
from builderd.schemas.v1.shape import Shape, field_errors

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
            file = await asyncio.to_thread(body.on_disk)
            try:
                code, parsed = await asyncio.get_running_loop().run_in_executor(pool, _take, shape, file, context)
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


def _take(shape: type[Shape], file: Path, context: dict[str, Any]) -> tuple[str, object]:
    """Return "" and the parsed value, or the code of the error and its validation errors or message."""
    try:
        return "", take(shape, file.read_bytes(), context)
    except ValidationFailed as error:
        return error.code, error.errors
    except (BadRequest, TooLarge) as error:
        return error.code, error.message


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


#: Bytes of a body in memory.
MEMORY_BYTES = 1_000_000
#: On a disk, where /tmp may be in memory (file-hierarchy(7)).
FOLDER = "/var/tmp"  # noqa: S108 -- the files have no name


class Body:
    """Body of a request as it arrived. Reading it does not change it."""

    def __init__(self, content: bytes = b"") -> None:
        self.size = 0
        self._memory = bytearray()
        self._spool: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._take(content)

    def _take(self, piece: bytes) -> None:
        self._memory += piece
        self.size += len(piece)
        self._digest.update(piece)

    async def add(self, piece: bytes) -> None:
        """Append a piece; what is in memory goes to the disk once there is too much of it."""
        self._take(piece)
        if len(self._memory) > MEMORY_BYTES:
            await asyncio.to_thread(self._spill)

    def _spill(self) -> None:
        self._spool = self._spool or tempfile.TemporaryFile(dir=FOLDER)  # noqa: SIM115 -- lives as long as the body
        self._spool.write(self._memory)
        self._memory = bytearray()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def on_disk(self) -> Path:
        """Put all bytes on the disk, and return the file by which another process of the service reads them."""
        self._spill()
        assert self._spool is not None
        self._spool.flush()
        return Path(f"/proc/{os.getpid()}/fd/{self._spool.fileno()}")

    def read(self) -> bytes:
        """Return all bytes."""
        if self._spool is None:
            return bytes(self._memory)
        self._spool.seek(0)
        return self._spool.read() + self._memory
