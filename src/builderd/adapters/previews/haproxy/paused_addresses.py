"""Pauses of requests to an IP address, while the app there is frozen for a copy of its disk.

The kernel takes as many connections for a frozen app as its listen backlog has room for, and drops further ones: those
would fail after ``timeout connect``. Only the proxy's own map has the pause; the file keeps the route, with which the
next service begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from builderd.adapters.previews.haproxy.route_map import RouteMap
from builderd.domain.errors import EngineUnavailable

log = logging.getLogger(__name__)

#: Sends a host's route to the proxy, as it is in force now.
Send = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def paused_at(routes: RouteMap, ip: str, send: Send) -> AsyncIterator[None]:
    """Pause requests to an address while the context lasts; a proxy that does not work prevents nothing."""
    routes.pause(ip)
    try:
        await _send_each(routes.hosts_at(ip), send)
        yield
    finally:
        routes.resume(ip)
        await asyncio.shield(_send_each(routes.hosts_at(ip), send))


async def _send_each(hosts: Iterable[str], send: Send) -> None:
    for host in hosts:
        try:
            await send(host)
        except EngineUnavailable as error:
            log.warning("pause of requests not changed host=%s error=%s", host, error.message)
