"""The server over stdio, beside an agent: it calls a service by its URL with one token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from builderd import AsyncBuilderd
from builderd.mcp.calls import client_name
from builderd.mcp.server import make_server

#: Headers that the API knows: the program in events, and credentials masked in answers.
CLIENT, MASK = "Builderd-Client", {"Builderd-Mask": "credentials"}


def serve(url: str, token: str, ca: str | None = None) -> None:
    """Serve one agent on stdin and stdout until it closes them. ``ca`` is a file with further certificates."""
    clients: dict[str, AsyncBuilderd] = {}

    @asynccontextmanager
    async def connect(context: Any) -> AsyncIterator[AsyncBuilderd]:
        # One for each name that the agent gives, which is one.
        name = client_name(context)
        if name not in clients:
            clients[name] = AsyncBuilderd(url, token, ca=ca, headers={CLIENT: name, **MASK})
        yield clients[name]

    make_server(connect).run("stdio")
