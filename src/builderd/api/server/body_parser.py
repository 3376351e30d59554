"""Large bodies are parsed in a process of their own.

Parsing 29 MB takes up to a second, in calls that keep the interpreter for a tenth of a second each: in a thread of the
service, every request of everybody would wait for several of them. The process is started for the first large body,
and ends with the service, also when that is killed: its input ends then. It has a child for each body, whose memory is
free again when it ends. Neither the body nor the contents of large files in it are loaded into the service's memory.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from builderd.api.server.spool import Body, Part, Spool
from builderd.domain.errors import BadRequest, BuilderdError, MachineFault, TooLarge, ValidationFailed
from builderd.schemas.v1.files import LARGE_BYTES
from builderd.schemas.v1.shape import Shape

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
        """The body as this shape. Raises as ``json_parsing.take``, and ``MachineFault`` when the process fails."""
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
