"""Large bodies are parsed in a process of their own.

Parsing 29 MB takes up to a second, in calls that keep the interpreter for a tenth of a second each: in a thread of the
service, every request of everybody would wait for several of them. The process is started for the first large body,
and ends with the service, also when that is killed: its input ends then. It has a child for each body, whose memory is
free again when it ends. Neither the body nor the contents of large files in it are loaded into the service's memory.
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
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from pydantic import ValidationError

from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.schemas.v1.files import LARGE_BYTES
from builderd.schemas.v1.shape import Shape, field_errors

S = TypeVar("S", bound=Shape)

#: A body takes at most a second or two; a process that takes longer hangs.
PARSE_SECONDS = 60.0
#: Bytes of the length before each message.
LENGTH = 8
#: Bytes of a large content in memory at a time.
PIECE_BYTES = 1 << 20
#: Errors by the kind of the answer, and what each is made of.
ERRORS: Mapping[str, Callable[[Any], BuilderdError]] = {
    "validation_error": ValidationFailed,
    "bad_request": BadRequest,
    "too_large": TooLarge,
}
_MODULE = "builderd.api.server.body_worker"
_SOURCE = str(Path(__file__).parents[3])


class BodyParser:
    """One process, which parses one body after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "bodies")
        self._process: subprocess.Popen[bytes] | None = None

    async def take(self, shape: type[S], body: Body, context: dict[str, Any]) -> S:
        """The body as this shape. Raises as ``take``, and ``MachineFault`` when the process fails."""
        value = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, shape, body, context)
        assert isinstance(value, shape)
        return value

    def close(self) -> None:
        """End the process, once it has parsed what it was given. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._end(self._process)

    def _ask(self, shape: type[Shape], body: Body, context: dict[str, Any]) -> Any:
        process = self._process = self._running()
        late = threading.Timer(PARSE_SECONDS, process.kill)
        late.start()
        try:
            assert process.stdin
            assert process.stdout
            write_message(process.stdin, pickle.dumps((shape, context)))
            process.stdin.write(body.size.to_bytes(LENGTH, "big"))
            body.copy_to(process.stdin)
            process.stdin.flush()
            kind, content = _read_answer(process.stdout)
        except (BrokenPipeError, EOFError) as error:
            self._end(process)
            raise MachineFault(
                "The process that parses large bodies has ended, perhaps for lack of memory: send the request again.",
                retry_after=5,
            ) from error
        except OSError:
            # The disk's, in the middle of an answer.
            self._end(process)
            raise
        finally:
            late.cancel()
        if kind in ERRORS:
            raise ERRORS[kind](content)
        return content

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        return subprocess.Popen(
            [sys.executable, "-s", "-P", "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={"PYTHONPATH": _SOURCE, "LANG": "C.UTF-8"},
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()


def _read_answer(stream: IO[bytes]) -> tuple[str, Any]:
    """Read the large contents into a file, then the value or the error that refers to them."""
    size, spool = int.from_bytes(_read(stream, LENGTH), "big"), None
    if size:
        spool = Spool()
        while size:
            size -= spool.file.write(_read(stream, min(size, PIECE_BYTES)))
        spool.file.flush()
    kind, content = _Unpickler(read_message(stream), spool).load()
    return kind, content


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, spool: Spool | None) -> None:
        super().__init__(io.BytesIO(pickled))
        self._spool = spool

    def persistent_load(self, pid: Any) -> Part:
        assert self._spool
        return Part(self._spool, *pid)


def write_answer(stream: IO[bytes], answer: tuple[str, Any]) -> None:
    """Write the large contents of the answer, then the answer with references to them."""
    out = io.BytesIO()
    pickler = _Pickler(out)
    pickler.dump(answer)
    stream.write(pickler.size.to_bytes(LENGTH, "big"))
    for content in pickler.large:
        stream.write(content)
    write_message(stream, out.getbuffer())


class _Pickler(pickle.Pickler):
    """Takes out large bytes: those of files."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__(out)
        self.large: list[bytes] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> tuple[int, int] | None:
        if type(obj) is not bytes or len(obj) < LARGE_BYTES:
            return None
        self.large.append(obj)
        self.size += len(obj)
        return self.size - len(obj), len(obj)


def write_message(stream: IO[bytes], content: bytes | memoryview) -> None:
    """Write a message with its length before it."""
    stream.write(len(content).to_bytes(LENGTH, "big"))
    stream.write(content)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes:
    """Read a message. Raises ``EOFError`` when the other side has ended."""
    size = int.from_bytes(_read(stream, LENGTH), "big")
    return _read(stream, size)


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


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
_CHUNK_BYTES = 1 << 20


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


class Body:
    """Body of a request as it arrived. Reading it does not change it."""

    def __init__(self, content: bytes = b"") -> None:
        self.size = 0
        self._memory = bytearray()
        self._spool: Spool | None = None
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
        self._spool = self._spool or Spool()
        self._spool.file.write(self._memory)
        self._memory = bytearray()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self) -> bytes:
        """Return all bytes."""
        if self._spool is None:
            return bytes(self._memory)
        self._spool.file.seek(0)
        return self._spool.file.read() + self._memory

    def copy_to(self, stream: IO[bytes]) -> None:
        """Write all bytes, without loading them into memory."""
        if self._spool is not None:
            self._spool.file.seek(0)
            shutil.copyfileobj(self._spool.file, stream, _CHUNK_BYTES)
        stream.write(self._memory)
