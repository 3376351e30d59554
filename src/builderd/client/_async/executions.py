"""Commands beside an app, run to their end, and terminals over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypedDict

import httpx2
from httpx2.websockets import AsyncWebSocketSession, WebSocketDisconnect, WebSocketNetworkError, WebSocketUpgradeError
from wsproto.events import BytesMessage, TextMessage
from wsproto.utilities import LocalProtocolError

from builderd.client._async.transport import AsyncTransport, parsed
from builderd.client.errors import NoAnswer, error_in, error_of
from builderd.client.models import Execution
from builderd.client.options import api_path


class ExecOptions(TypedDict, total=False):
    """Options of ``builder.exec``; ``timeout`` in seconds, by default 60.

    ``separate`` keeps standard error apart, in ``stderr``. ``process`` is a further process of the app, in whose
    sandbox it runs. ``on_output`` gets each piece of the output as it comes, and
    ``on_errors``, which goes with it, those of standard error; ``output`` is empty then.
    """

    timeout: int
    stdin: str
    cwd: str | None
    env: Mapping[str, str] | None
    separate: bool
    process: str | None
    on_output: Callable[[str], None] | None
    on_errors: Callable[[str], None] | None


async def execute(transport: AsyncTransport, uuid: str, command: str, options: ExecOptions) -> Execution:
    """Run a command and wait for its end."""
    on_output, on_errors = options.get("on_output"), options.get("on_errors")
    body: dict[str, Any] = {
        "command": command,
        "timeout": options.get("timeout", 60),
        "stdin": options.get("stdin", ""),
        "env": dict(options.get("env") or {}),
    }
    if (cwd := options.get("cwd")) is not None:
        body["cwd"] = cwd
    if process := options.get("process"):
        body["process"] = process
    if options.get("separate") or on_errors is not None:
        body["separate"] = True
    path = api_path("builders", uuid, "exec")
    if on_output is None:
        return await transport.read(Execution, "POST", path, json=body, waits=True)
    async with transport.events("POST", path, json={**body, "stream": True}, deadline=transport.deadline()) as events:
        async for event in events:
            if event is None:
                continue
            if event.name == "exit":
                return parsed(Execution, {**event.json(), "output": "", "stderr": ""})
            if event.name == "failed":
                raise error_of(event.json(), request_id=events.request_id)
            piece = event.json()
            is_error = on_errors is not None and piece.get("stream") == "stderr"
            (on_errors if is_error and on_errors else on_output)(piece["text"])
    raise NoAnswer("the stream ended before the command did", builder=uuid)


PROTOCOL = "builderd.terminal.v1"
NORMAL = 1000
#: Raised by a send to a terminal that has ended or whose connection broke off.
_ENDED = (LocalProtocolError, WebSocketDisconnect, WebSocketNetworkError)


class AsyncTerminal:
    """Open terminal. ``exit_code`` is set once ``read`` has returned None."""

    def __init__(self, socket: AsyncWebSocketSession) -> None:
        self._socket = socket
        self.exit_code: int | None = None

    async def read(self) -> bytes | None:
        """Return what is printed next, None at the end."""
        try:
            while True:
                message = await self._socket.receive()
                if isinstance(message, BytesMessage):
                    return bytes(message.data)
                if isinstance(message, TextMessage):
                    ended = json.loads(message.data)
                    if ended.get("type") == "exit":
                        self.exit_code = ended["exit_code"]
        except WebSocketDisconnect as end:
            if self.exit_code is None:
                raise NoAnswer(f"the terminal was closed: {end.reason or end.code}") from end
            return None
        except WebSocketNetworkError as broken:
            raise NoAnswer("the terminal's connection broke off") from broken

    async def write(self, typed: bytes) -> None:
        """Type. What is typed after the end is dropped: ``read`` returns the end."""
        with suppress(*_ENDED):
            await self._socket.send_bytes(typed)

    async def resize(self, columns: int, rows: int) -> None:
        """Change the window's size; nothing happens after the end."""
        with suppress(*_ENDED):
            await self._socket.send_text(json.dumps({"type": "resize", "columns": columns, "rows": rows}))


@asynccontextmanager
async def open_terminal(
    transport: AsyncTransport, uuid: str, command: str | None, columns: int, rows: int
) -> AsyncIterator[AsyncTerminal]:
    """Open a terminal. Raises the SDK's errors where the service refuses it."""
    params: dict[str, Any] = {"columns": columns, "rows": rows, **({"command": command} if command else {})}
    try:
        async with transport.http.websocket(
            api_path("builders", uuid, "terminal"), params=params, subprotocols=[PROTOCOL]
        ) as socket:
            yield AsyncTerminal(socket)
    except WebSocketUpgradeError as refused:
        response = refused.response
        raise error_in(response.status_code, response.headers, response.content) from refused
    except httpx2.TransportError as broken:
        raise NoAnswer(f"terminal of {uuid}: {str(broken) or type(broken).__name__}") from broken
