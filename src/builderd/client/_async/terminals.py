"""Terminals: a shell or a command in a builder's sandbox, over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
from httpx2.websockets import AsyncWebSocketSession, WebSocketDisconnect, WebSocketNetworkError, WebSocketUpgradeError
from wsproto.events import BytesMessage, TextMessage
from wsproto.utilities import LocalProtocolError

from builderd.client._async.transport import AsyncTransport
from builderd.client.errors import NoAnswer, error_in
from builderd.client.paths import api_path

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
                    told = json.loads(message.data)
                    if told.get("type") == "exit":
                        self.exit_code = told["exit_code"]
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
