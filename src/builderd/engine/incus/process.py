"""Programs in instances: one that Incus executes, with its websockets, and a process beside an app.

``control`` is connected first: the program starts with its streams, and a short one would be over before it. An empty
text message ends a stream; Incus hangs up without a closing frame. ``IncusProcess`` implements
``ports.engine.Process``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from builderd.core.errors import BuilderdError, EngineUnavailable, InvalidState, ValidationFailed
from builderd.engine.incus.client import IncusClient, IncusError, IncusNotFound, Json
from builderd.engine.incus.image import ASKING, FOLDER, NO_FOLDER, READY, exec_argv, specified
from builderd.executions.model import KILLED_EXIT_CODE, TERM, ProcessSpec, Window

_PIECE_BYTES = 1 << 16
#: Most that is kept of the output of a program of the service's own.
MAX_OUTPUT = 4 << 20
_CONTROL, _INPUT, _OUTPUT, _ERRORS = "control", "0", "1", "2"
#: Words of Incus for an instance that does not run.
_NOT_RUNNING = ("is not running", "not running", "is frozen", "instance is stopped", "isn't running")


class NotRunningError(InvalidState):
    """The instance does not run, or is frozen: nothing was started."""

    def __init__(self) -> None:
        super().__init__("The sandbox does not run.")


class ExecSession:
    """Streams of one program; each has at most one reader. ``close`` hangs up, which kills it if it still runs."""

    def __init__(self, client: IncusClient, operation: Json, sockets: dict[str, ClientConnection]) -> None:
        self._client = client
        self._operation = operation
        self._sockets = sockets
        self._waiting = asyncio.ensure_future(self._wait())
        self._input_closed = False

    @classmethod
    async def open(
        cls, client: IncusClient, instance: str, argv: Sequence[str], window: Window | None = None
    ) -> ExecSession:
        """Start the program as root. Raises ``NotRunningError``."""
        body: Json = {
            "command": list(argv),
            "environment": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            "wait-for-websocket": True,
            "interactive": window is not None,
            "user": 0,
            "group": 0,
            "cwd": "/",
        }
        if window:
            body |= {"width": window.columns, "height": window.rows}
            body["environment"]["TERM"] = "xterm-256color"
        try:
            operation = await client.begin("POST", f"/instances/{instance}/exec", body)
        except IncusNotFound:
            raise NotRunningError from None
        except IncusError as error:
            if any(words in error.message.lower() for words in _NOT_RUNNING):
                raise NotRunningError from None
            raise
        return cls(client, operation, await _connect(client, operation))

    async def read(self) -> bytes:
        """Return the next piece of its output; empty at the end."""
        return await self._read(_INPUT if self.is_terminal else _OUTPUT)

    async def read_errors(self) -> bytes:
        """Return the next piece of its standard error; empty at the end, and with a terminal."""
        return b"" if self.is_terminal else await self._read(_ERRORS)

    @property
    def is_terminal(self) -> bool:
        return _OUTPUT not in self._sockets

    async def _read(self, name: str) -> bytes:
        try:
            while True:
                message = await self._sockets[name].recv()
                if isinstance(message, str):
                    return b""
                if message:
                    return message
        except ConnectionClosed:
            return b""

    async def write(self, data: bytes) -> None:
        """Write all of this; ignored once nobody reads it."""
        with suppress(ConnectionClosed):
            for start in range(0, len(data), _PIECE_BYTES):
                if self._waiting.done():
                    return
                await self._sockets[_INPUT].send(data[start : start + _PIECE_BYTES])

    async def close_input(self) -> None:
        """End its input. Idempotent."""
        if not self._input_closed:
            self._input_closed = True
            with suppress(ConnectionClosed):
                await self._sockets[_INPUT].send("")

    async def resize(self, window: Window) -> None:
        size = {"width": str(window.columns), "height": str(window.rows)}
        with suppress(ConnectionClosed):
            await self._sockets[_CONTROL].send(json.dumps({"command": "window-resize", "args": size}))

    @property
    def ended(self) -> bool:
        return self._waiting.done()

    async def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return await asyncio.shield(self._waiting)

    async def _wait(self) -> int:
        try:
            done = await self._client.wait(self._operation, "exec")
        except IncusError:
            # The instance ended under it.
            return KILLED_EXIT_CODE
        code = int((done.get("metadata") or {}).get("return", -1))
        return code if code >= 0 else KILLED_EXIT_CODE

    async def hang_up_terminal(self) -> None:
        """Close the terminal's stream: Incus ends its operation only then."""
        if self.is_terminal:
            await self._sockets[_INPUT].close()

    async def close(self) -> None:
        """Close all streams. Idempotent."""
        await asyncio.gather(*(socket.close() for socket in self._sockets.values()), return_exceptions=True)
        if not self._waiting.done():
            self._waiting.cancel()
        await asyncio.wait({self._waiting})
        if not self._waiting.cancelled():
            self._waiting.exception()


async def _connect(client: IncusClient, operation: Json) -> dict[str, ClientConnection]:
    secrets = operation["metadata"]["fds"]
    path = f"/operations/{operation['id']}/websocket"
    sockets: dict[str, ClientConnection] = {}

    async def connect(name: str) -> None:
        sockets[name] = await client.open_websocket(path, secret=secrets[name])

    try:
        await connect(_CONTROL)
        async with asyncio.TaskGroup() as connecting:
            for name in sorted(secrets.keys() - {_CONTROL}):
                connecting.create_task(connect(name))
    except BaseException as error:
        await asyncio.gather(*(socket.close() for socket in sockets.values()), return_exceptions=True)
        raise (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error) from None
    return sockets


async def run_to_end(client: IncusClient, instance: str, argv: Sequence[str], stdin: bytes = b"") -> tuple[int, bytes]:
    """Run a program of the service's own; return its exit code and output. It is fed and read at once."""
    session = await ExecSession.open(client, instance, argv)

    async def feed() -> None:
        await session.write(stdin)
        await session.close_input()

    async def read() -> bytes:
        output = bytearray()
        while piece := await session.read():
            # What comes beyond is read and dropped, so that the program ends.
            output += piece[: MAX_OUTPUT - len(output)]
        return bytes(output)

    try:
        output, _ = await asyncio.gather(read(), feed())
        return await session.wait(), output
    finally:
        await session.close()


#: ^D
_END_OF_INPUT = b"\x04"
_START_SECONDS = 30.0
#: Grace time of a process after its input was closed.
_HANG_UP_SECONDS = 1.0
_KILL_SECONDS = 5.0
#: Bytes before the wrapper's report: its line, and what a terminal adds.
_MAX_READY_BYTES = 4096


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
                received = received.partition(ASKING)[2]
                received = await self._received(received, lambda text: b"\n" in text.partition(READY)[2])
                line, _, self._first = received.partition(READY)[2].partition(b"\n")
                self._pid = line.decode().strip()
        except TimeoutError as error:
            await self.end(0)
            raise EngineUnavailable(
                "The command could not be started in time: the machine is overloaded.", retry_after=10
            ) from error
        except BaseException:
            await asyncio.shield(self.end(0))
            raise

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
