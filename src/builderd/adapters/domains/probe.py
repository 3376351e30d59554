"""A request of the challenge path over plain HTTP, from an address that the check has chosen."""

from __future__ import annotations

import asyncio
import os

from builderd.domain.errors import machine_fault
from builderd.ports.domains import ProbeReply

#: Seconds from the connection to the end of the reply.
TIMEOUT = 8.0
#: Bytes of a reply that are read: an answer of our own is far shorter.
MAX_REPLY = 8_192
MAX_SERVER = 60


class HttpChallengeProbe:
    """Implements ``ports.domains.ChallengeProbe``. It resolves nothing: no name can lead it elsewhere."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout

    async def get(self, address: str, port: int, host: str, path: str) -> ProbeReply:
        try:
            async with asyncio.timeout(self._timeout):
                return _parse(await _exchange(address, port, host, path))
        except TimeoutError:
            return ProbeReply(None, error=f"no answer within {self._timeout:g} s")
        except OSError as error:
            if (fault := machine_fault(error)) is not None:
                raise fault from error
            return ProbeReply(None, error=os.strerror(error.errno).lower() if error.errno else "no connection")


async def _exchange(address: str, port: int, host: str, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(address, port, limit=MAX_REPLY)
    try:
        authority = host if port == 80 else f"{host}:{port}"
        lines = (f"GET {path} HTTP/1.1", f"Host: {authority}", "User-Agent: builderd", "Connection: close", "", "")
        writer.write("\r\n".join(lines).encode("ascii"))
        reply = bytearray()
        while len(reply) < MAX_REPLY and (piece := await reader.read(MAX_REPLY - len(reply))):
            reply += piece
        return bytes(reply)
    finally:
        writer.close()


def _parse(reply: bytes) -> ProbeReply:
    head, _, body = reply.decode("latin-1").partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        return ProbeReply(None, error="what answers does not speak HTTP")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    server = "".join(character for character in fields.get("server", "")[:MAX_SERVER] if character.isprintable())
    return ProbeReply(int(words[1]), body, server)
