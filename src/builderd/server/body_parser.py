"""JSON bodies: strict parsing, and large ones in a process of their own.

Parsing 29 MB takes up to a second, in calls that keep the interpreter for a tenth of a second each: in a thread of the
service, every request of everybody would wait for several of them. The contents of large files are not loaded into the
service's memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from pydantic import ValidationError

from builderd.core.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.schemas.files import LARGE_BYTES
from builderd.schemas.shape import Shape, field_errors

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
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadRequest(
                r"The body has half of a surrogate pair (\ud800 to \udfff alone), which is no text."
            ) from None
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


def _shown(text: str) -> str:
    cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return json.dumps(cut)


#: Bytes of a body in memory. A longer one is on a disk, where /tmp may be in memory (file-hierarchy(7)).
MEMORY_BYTES = 1_000_000
FOLDER = "/var/tmp"  # noqa: S108 -- the files have no name


class Body:
    """Body of a request as it arrived. Reading it does not change it."""

    def __init__(self, content: bytes = b"") -> None:
        self.size = 0
        self.file = tempfile.SpooledTemporaryFile(MEMORY_BYTES, dir=FOLDER)  # noqa: SIM115 -- ends with the body
        self._digest = hashlib.sha256()
        self._take(content)

    def _take(self, piece: bytes) -> None:
        self.file.write(piece)
        self.size += len(piece)
        self._digest.update(piece)

    async def add(self, piece: bytes) -> None:
        """Append a piece."""
        if self.size + len(piece) > MEMORY_BYTES:
            await asyncio.to_thread(self._take, piece)
        else:
            self._take(piece)

    def __del__(self) -> None:
        self.file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self) -> bytes:
        """Return all bytes."""
        self.file.seek(0)
        return self.file.read()


#: A body takes at most a second or two; a process that takes longer hangs.
PARSE_SECONDS = 60.0
#: Bytes at the end of an answer: where its pickle begins, after the contents of large files.
LENGTH = 8
#: Errors by the kind of the answer, and what each is made of.
ERRORS: Mapping[str, Callable[[Any], BuilderdError]] = {
    "validation_error": ValidationFailed,
    "bad_request": BadRequest,
    "too_large": TooLarge,
}


class Spool:
    """A file without a name, closed with its last reference."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(dir=FOLDER)  # noqa: SIM115 -- lives as long as what refers to it

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


class Part:
    """Bytes of a spool. Implements ``domain.bundles.Content``."""

    __slots__ = ("_spool", "_start", "size")

    def __init__(self, spool: Spool, start: int, size: int) -> None:
        self._spool = spool
        self._start = start
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self._spool.file.fileno(), max(min(length, self.size - start), 0), self._start + start)


async def take_apart(shape: type[S], body: Body, context: dict[str, Any]) -> S:
    """Return the body as this shape, parsed in a process. Raises as ``take``, and ``MachineFault`` when that fails."""
    answer = Spool()
    await _run(body, answer, pickle.dumps((shape, context)).hex())
    kind, content = await asyncio.to_thread(_read_answer, answer)
    if kind in ERRORS:
        raise ERRORS[kind](content)
    assert isinstance(content, shape)
    return content


async def _run(body: Body, answer: Spool, argument: str) -> None:
    body.file.seek(0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-s", "-P", "-m", "builderd.server.body_worker", argument),
        stdin=body.file.fileno(),
        stdout=answer.file,
        start_new_session=True,
        cwd="/",
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "LANG": "C.UTF-8"},
    )
    try:
        async with asyncio.timeout(PARSE_SECONDS):
            status = await process.wait()
    except TimeoutError:
        status = -1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise MachineFault(
            f"The process that parses large bodies has failed, perhaps for lack of memory or of space in {FOLDER}: "
            "send the request again.",
            retry_after=5,
        )


def _read_answer(answer: Spool) -> tuple[str, Any]:
    file = answer.file
    file.seek(-LENGTH, os.SEEK_END)
    file.seek(int.from_bytes(file.read(LENGTH), "big"))
    unpickler = pickle.Unpickler(file)  # noqa: S301 -- from the service's own process
    unpickler.persistent_load = lambda pid: Part(answer, *pid)  # type: ignore[method-assign]
    kind, content = unpickler.load()
    return kind, content


def write_answer(file: IO[bytes], answer: tuple[str, Any]) -> None:
    """Write the contents of large files, then the answer with references to them, and where it begins."""
    pickled = io.BytesIO()
    pickler = _Pickler(pickled, file)
    pickler.dump(answer)
    file.write(pickled.getbuffer())
    file.write(pickler.size.to_bytes(LENGTH, "big"))
    file.flush()


class _Pickler(pickle.Pickler):
    """Writes large bytes, which are those of files, to ``contents``."""

    def __init__(self, pickled: IO[bytes], contents: IO[bytes]) -> None:
        super().__init__(pickled)
        self._contents = contents
        self.size = 0

    def persistent_id(self, obj: Any) -> tuple[int, int] | None:
        if type(obj) is not bytes or len(obj) < LARGE_BYTES:
            return None
        self._contents.write(obj)
        self.size += len(obj)
        return self.size - len(obj), len(obj)
