"""A process beside an app. Implements ``ports.processes.Process``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.exec_session import ExecSession, run_to_end
from builderd.adapters.engines.incus.guest import ASKING, FOLDER, NO_FOLDER, READY, exec_argv, specified
from builderd.domain.errors import BuilderdError, EngineUnavailable, InvalidState, ValidationFailed
from builderd.domain.processes import KILLED_EXIT_CODE, TERM, ProcessSpec, Window

#: ^D
_END_OF_INPUT = b"\x04"
_START_SECONDS = 30.0
#: Grace time of a process after its input was closed.
_HANG_UP_SECONDS = 1.0
_KILL_SECONDS = 5.0
#: Bytes before the wrapper's report: its line, and what a terminal adds.
_MAX_READY_BYTES = 4096
#: Open commands of one sandbox: each holds four connections to Incus.
MAX_OPEN = 64


class IncusProcess:
    """One program in one instance. ``begin`` waits until it runs."""

    def __init__(self, client: IncusClient, instance: str, spec: ProcessSpec) -> None:
        self._client = client
        self._instance = instance
        self._spec = spec
        self._session: ExecSession | None = None
        self._first = b""
        #: Id of the wrapper's process in the instance.
        self._pid = ""
        self._killed = False

    async def begin(self) -> None:
        """Start it. Raises what ``Sandboxes.open_process`` does; then nothing of it is left."""
        spec, terminal = self._spec, {"TERM": TERM} if self._spec.window else {}
        argv, wanted = exec_argv(joined=spec.joined), specified(spec.argv, {**terminal, **spec.env}, spec.folder)
        try:
            async with asyncio.timeout(_START_SECONDS):
                self._session = await ExecSession.open(self._client, self._instance, argv, spec.window)
                # A terminal shows what is sent before: ``begin`` asks once it does not any more.
                received = await self._received(b"", lambda text: ASKING in text)
                await self._session.write(wanted)
                await self._read_report(received.partition(ASKING)[2])
        except TimeoutError as error:
            await self.end(0)
            raise EngineUnavailable(
                "The command could not be started in time: the machine is overloaded.", retry_after=10
            ) from error
        except BaseException:
            await asyncio.shield(self.end(0))
            raise

    async def _read_report(self, received: bytes) -> None:
        received = await self._received(received, lambda text: b"\n" in text.partition(READY)[2])
        line, _, self._first = received.partition(READY)[2].partition(b"\n")
        self._pid = line.decode().strip()

    async def _received(self, received: bytes, is_whole: Callable[[bytes], bool]) -> bytes:
        """Return the wrapper's output up to what is awaited. Raises ``InvalidState`` when it does not come."""
        # The program's own output, of any length, may come in one piece with the report.
        while not is_whole(received):
            if received.endswith(NO_FOLDER):
                raise ValidationFailed({"cwd": [f"there is no folder {self._spec.folder} in the sandbox"]})
            piece = await self._running.read() if len(received) <= _MAX_READY_BYTES else b""
            if not piece:
                raise InvalidState(
                    f"The command could not be started: {received.decode(errors='replace').strip() or 'it has ended'}"
                )
            received += piece
        return received

    @property
    def _running(self) -> ExecSession:
        assert self._session, "it was begun"
        return self._session

    async def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        piece = await self._running.read()
        if not piece:
            await self._running.hang_up_terminal()
        return piece

    async def read_errors(self) -> bytes:
        return await self._running.read_errors()

    async def write(self, data: bytes) -> None:
        await self._running.write(data)

    def close_input(self) -> None:
        session = self._running
        closing = session.write(_END_OF_INPUT) if session.is_terminal else session.close_input()
        self._closing = asyncio.ensure_future(closing)

    def resize(self, window: Window) -> None:
        if self._spec.window:
            self._resizing = asyncio.ensure_future(self._running.resize(window))

    async def wait(self) -> int:
        code = await self._running.wait()
        return KILLED_EXIT_CODE if self._killed and code == 0 else code

    async def kill(self) -> None:
        session = self._session
        if session is None or session.ended or self._killed:
            return
        self._killed = True
        if self._pid:
            # An instance that has ended has killed it already.
            with suppress(InvalidState):
                await run_to_end(self._client, self._instance, (f"{FOLDER}/end", self._pid))
        await session.hang_up_terminal()
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                await session.wait()

    async def end(self, grace: float = _HANG_UP_SECONDS) -> None:
        """Close its input, then kill it if it does not end; release the connections."""
        session = self._session
        if session is None:
            return
        try:
            if not session.ended and grace:
                await session.close_input()
                await session.hang_up_terminal()
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await session.wait()
            with suppress(BuilderdError):
                await self.kill()
        finally:
            await session.close()


class Processes:
    """Open processes, at most ``MAX_OPEN`` in each instance."""

    def __init__(self, client: IncusClient) -> None:
        self._client = client
        self._open: Counter[str] = Counter()

    @asynccontextmanager
    async def open(self, instance: str, spec: ProcessSpec) -> AsyncIterator[IncusProcess]:
        if self._open[instance] >= MAX_OPEN:
            raise InvalidState(f"{MAX_OPEN} commands run in the builder already: wait until one of them has ended.")
        self._open[instance] += 1
        process = IncusProcess(self._client, instance, spec)
        try:
            await process.begin()
            try:
                yield process
            finally:
                await asyncio.shield(process.end())
        finally:
            self._open[instance] -= 1
            self._open += Counter()
