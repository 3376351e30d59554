"""Calls of a standby to the service that works, by the port for members: its readiness, and its routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.adapters.previews.haproxy.receiving import SECRET_FIELD, SERVICE_FIELD, PassedOn
from builderd.domain.cluster_services import ClusterService
from builderd.domain.errors import EngineUnavailable
from builderd.operations import proxy_header

#: Seconds within which the service that works must answer a look, and send the next piece of its list of routes.
LOOK_SECONDS = 4.0
#: Seconds within which all of the list must be read.
LIST_READ_SECONDS = 10.0
#: Most bytes of its answer, and of its list of routes: 100,000 of them have some ten.
MAX_ANSWER, MAX_LIST = 65_536, 32_000_000


class NotReached(EngineUnavailable):
    """Nothing takes connections at the address of the service that works."""


class NoExchange(EngineUnavailable):
    """The service that works is of a version that tells standbys its list alone."""


async def ask_readiness(target: Target, secret: str) -> dict[str, Any]:
    """Ask the service that works for its readiness as a client of this standby; return the answer's data.

    Raises ``EngineUnavailable`` where it does not answer.
    """
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            answer = await _ask(target, secret, PassedOn.API, "/readyz")
    except TimeoutError:
        raise EngineUnavailable(f"it does not answer within {LOOK_SECONDS:g} s") from None
    if not answer:
        raise EngineUnavailable(
            "it takes nothing from this member: its vault.key is another one, or this machine's address is no member's"
        )
    try:
        head, _, content = answer.partition(b"\r\n\r\n")
        found = json.loads(content)
    except ValueError:
        raise EngineUnavailable("what answers at its members_port is no builderd") from None
    data = found.get("data") if isinstance(found, dict) and head.startswith(b"HTTP/1.1 ") else None
    if not isinstance(data, dict):
        raise EngineUnavailable("its API does not answer: it is being restarted, or has more to do than it can take")
    return data


async def ask_routes(target: Target, secret: str, path: str, report: bytes = b"") -> bytes:
    """Ask the service that works for its routes; return the answer's content. Raises ``EngineUnavailable``.

    With a report, it is sent as the content of a POST. Raises ``NoExchange`` for a service that takes none.
    """
    try:
        async with asyncio.timeout(LIST_READ_SECONDS):
            answer = await _ask(target, secret, PassedOn.ROUTES, path, report, limit=MAX_LIST)
    except TimeoutError:
        raise EngineUnavailable(f"its routes stopped for {LOOK_SECONDS:g} s, or took {LIST_READ_SECONDS:g} s") from None
    if len(answer) >= MAX_LIST:
        raise EngineUnavailable(f"the list of its routes is longer than {MAX_LIST / 1e6:g} MB")
    head, _, content = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        first = head.partition(b"\r\n")[0].decode(errors="replace")
        if report and first.startswith("HTTP/1.1 404 "):
            raise NoExchange(f"it tells no closed routes: it is of an earlier version ({first})")
        raise EngineUnavailable(f"it tells no routes now, or is of an earlier version ({first or 'no answer'})")
    return content


async def _ask(
    target: Target, secret: str, service: PassedOn, path: str, content: bytes = b"", *, limit: int = MAX_ANSWER
) -> bytes:
    reader, writer = await _connect(target)
    try:
        own = writer.get_extra_info("sockname")
        header = proxy_header.build((own[0], own[1]), {SECRET_FIELD: secret, SERVICE_FIELD: service})
        line = f"POST {path} HTTP/1.1\r\nContent-Length: {len(content)}" if content else f"GET {path} HTTP/1.1"
        writer.write(header + f"{line}\r\nHost: standby\r\nConnection: close\r\n\r\n".encode() + content)
        answer = bytearray()
        while len(answer) < limit and (piece := await asyncio.wait_for(reader.read(MAX_ANSWER), LOOK_SECONDS)):
            answer += piece
        return bytes(answer)
    except TimeoutError:
        raise
    except OSError:
        # As closes a proxy that takes nothing from here.
        return b""
    finally:
        writer.close()


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(LOOK_SECONDS / 2):
            return await asyncio.open_connection(target.address, target.port, limit=MAX_ANSWER)
    except TimeoutError:
        raise NotReached(f"its members_port is not reached within {LOOK_SECONDS / 2:g} s") from None
    except OSError as error:
        raise NotReached(f"its members_port is not reached ({error.strerror or error})") from None


def target_of(service: ClusterService) -> Target | None:
    """Return where a service takes what is passed on; None for one that announces no address."""
    address, _, port = (service.address or "").rpartition(":")
    return Target(address, int(port), api=True, streams=True) if address and port.isdecimal() else None
