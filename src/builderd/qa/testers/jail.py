"""Programs of QA in the jail: they parse the responses of a hostile app, and can reach only that app.

A socket that listens inside (``sandboxing.bubblewrap``) is passed out to the relay. The memory of all its processes
together is watched.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builderd.previews.model import Address
from builderd.sandboxing.bubblewrap import Folder, jailed, memory_of
from builderd.sandboxing.privileges import Limits

WORKERS = Path(__file__).parent / "workers"
#: Seconds for the jail to become ready.
READY_SECONDS = 10.0
#: Seconds between two checks of the memory.
WATCH_SECONDS = 0.25
MAX_PROCESSES, MAX_FILES = 512, 4096
MAX_ERRORS = 4_000
#: The virtual environment inside the jail.
VENV = Path("/venv")


class JailFailed(Exception):
    """The program failed, or its output cannot be parsed; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """A program to run. ``worker``: file in ``workers/``. Limits in seconds and bytes; None: no limit."""

    worker: str
    request: Mapping[str, Any]
    seconds: float
    memory: int
    output: int = 1_000_000
    address_space: int | None = None


def _command(job: Job, channel: int) -> list[str]:
    """Return the command line of the jail. ``channel`` is the descriptor on which a listening socket comes out."""
    folders = [Folder("venv", Path(sys.prefix), VENV), Folder("workers", WORKERS, Path("/workers"))]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        folders.append(Folder("base", Path(sys.base_prefix), Path(sys.base_prefix)))
    limits = Limits(
        cpu_seconds=int(job.seconds * 4) + 1,
        address_space=job.address_space,
        processes=MAX_PROCESSES,
        descriptors=MAX_FILES,
    )
    python = str(VENV / "bin" / "python")
    return jailed([python, "-I", "/workers/start.py", str(channel), f"/workers/{job.worker}"], limits, folders)


async def run(job: Job, address: Address) -> Any:
    """Run the program and parse its JSON output. Raises ``JailFailed``."""
    inner, outer = socket.socketpair()
    try:
        with inner:
            process = await asyncio.create_subprocess_exec(
                *_command(job, inner.fileno()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(inner.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        try:
            return _parse(await _converse(process, job, outer, address))
        finally:
            await _end(process)
    finally:
        outer.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the jail and drain its pipes: asyncio does not report an exit while a pipe is unread."""
    with suppress(ProcessLookupError):
        process.kill()
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(65_536):
            pass
    await process.wait()


async def _converse(process: asyncio.subprocess.Process, job: Job, channel: socket.socket, address: Address) -> bytes:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    errors = asyncio.create_task(_last(process.stderr))
    watch = asyncio.create_task(_watch(process.pid, job.memory))
    read = asyncio.create_task(_read(process.stdout, job.output))
    try:
        async with asyncio.timeout(job.seconds + READY_SECONDS):
            listener = await asyncio.to_thread(_receive, channel)
            async with Relay(listener, address):
                process.stdin.write(json.dumps(dict(job.request)).encode())
                process.stdin.close()
                async with asyncio.timeout(job.seconds):
                    await asyncio.wait({read, watch}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        output = await read
        async with asyncio.timeout(READY_SECONDS):
            code = await process.wait()
        if code:
            raise JailFailed(f"it ended with exit code {code}: {await errors}")
    except TimeoutError:
        raise JailFailed(f"it did not end within {job.seconds:g} seconds") from None
    except (ConnectionError, BrokenPipeError):
        raise JailFailed(f"it could not be begun: {await errors}") from None
    else:
        return output
    finally:
        for task in (errors, watch, read):
            task.cancel()
        await asyncio.gather(errors, watch, read, return_exceptions=True)


def _receive(channel: socket.socket) -> socket.socket:
    """Receive the socket that listens inside. Raises ``ConnectionError`` if none comes."""
    channel.settimeout(READY_SECONDS)
    try:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    except OSError as error:
        raise ConnectionError(str(error)) from error
    if not fds:
        raise ConnectionError("no socket came")
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    return listener


async def _read(stream: asyncio.StreamReader, limit: int) -> bytes:
    output = bytearray()
    while chunk := await stream.read(65_536):
        output += chunk
        if len(output) > limit:
            raise JailFailed(f"it wrote more than {limit} bytes")
    return bytes(output)


async def _last(stream: asyncio.StreamReader) -> str:
    """Read to the end and return the last ``MAX_ERRORS`` bytes as text."""
    kept = b""
    while chunk := await stream.read(65_536):
        kept = (kept + chunk)[-MAX_ERRORS:]
    return kept.decode(errors="replace").strip()


async def _watch(pid: int, limit: int) -> None:
    """Check the memory of all processes of the jail until cancelled. Raises ``JailFailed`` over the limit."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        if await asyncio.to_thread(memory_of, pid) > limit:
            raise JailFailed(f"it took more than {limit / 1e6:.0f} MB of memory")


def _parse(output: bytes) -> Any:
    try:
        return json.loads(output)
    except (ValueError, RecursionError) as error:
        raise JailFailed(f"what it wrote cannot be read ({type(error).__name__})") from None


#: Connections at the same time.
MAX_CONNECTIONS = 64
_CHUNK = 65_536


class Relay:
    """Accepts on a socket that listens in the jail's network namespace, and connects to the app from the host's."""

    def __init__(self, listener: socket.socket, address: Address) -> None:
        self._listener = listener
        self._address = address
        self._limit = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._limit:
                there, onward = await asyncio.open_connection(self._address.ip, self._address.port)
                try:
                    await asyncio.gather(_copy(reader, onward), _copy(there, writer))
                finally:
                    onward.close()
        except OSError:
            pass  # the app is unreachable: the client sees its connection end
        finally:
            writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await source.read(_CHUNK):
            target.write(chunk)
            await target.drain()
    with suppress(OSError):
        target.write_eof()
