"""Look-ups for the check of a domain: its DNS records, by dnspython, and a request of its challenge path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from builderd.core.errors import machine_fault
from builderd.previews.port import CaaRecord, DnsRecords, ProbeReply

#: Seconds for one question, all resolvers and tries together.
LIFETIME = 6.0
#: Seconds for all questions about one host: a hostile name may have over a hundred labels, each with a slow server.
TOTAL = 20.0
#: Records of a kind that are read; a hostile zone may have thousands.
MAX_RECORDS = 50
MAX_TEXT = 300


class DnsNameServers:
    """Implements ``ports.previews.NameServers``. ``resolvers`` are ``address:port``; none: those of the system."""

    def __init__(self, resolvers: Sequence[str] = ()) -> None:
        self._resolvers = resolvers

    async def records(self, host: str, text_name: str) -> DnsRecords:
        try:
            resolver = self._resolver()
            async with asyncio.timeout(TOTAL):
                four, six, caa, texts = await asyncio.gather(
                    self._ask(resolver, host, "A"),
                    self._ask(resolver, host, "AAAA"),
                    self._caa(resolver, host),
                    self._ask(resolver, text_name, "TXT"),
                )
        except TimeoutError:
            return DnsRecords(error=f"no answer to all questions within {TOTAL:g} s")
        except (dns.exception.DNSException, OSError) as error:
            return DnsRecords(error=_told(error))
        found = [one for one in (four, six) if one is not None]
        alias = next((str(one.canonical_name).rstrip(".").lower() for one in found), "")
        addresses = [record.address for one in found for record in list(one)[:MAX_RECORDS]]
        return DnsRecords(
            tuple(addresses), "" if alias == host else alias, tuple(caa), tuple(_texts(texts)) if texts else ()
        )

    def _resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=not self._resolvers)
        if self._resolvers:
            resolver.nameservers = [_server(one) for one in self._resolvers]
        resolver.lifetime = LIFETIME
        # Each check asks again: a cached answer would hide a change of the records.
        resolver.cache = None
        return resolver

    async def _ask(self, resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> dns.resolver.Answer | None:
        """Return the records, None when there are none."""
        try:
            return await resolver.resolve(dns.name.from_text(name), kind, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None

    async def _caa(self, resolver: dns.asyncresolver.Resolver, host: str) -> list[CaaRecord]:
        """Return the CAA records of the closest name that has any (RFC 8659, 3)."""
        labels = host.split(".")
        for begin in range(len(labels)):
            found = await self._ask(resolver, ".".join(labels[begin:]), "CAA")
            if found is not None:
                return [
                    CaaRecord(_printable(record.tag), _printable(record.value)) for record in list(found)[:MAX_RECORDS]
                ]
        return []


def _texts(answer: dns.resolver.Answer) -> list[str]:
    """Return the values of TXT records; each may be in several strings."""
    return [b"".join(record.strings)[:MAX_TEXT].decode("ascii", "replace") for record in list(answer)[:MAX_RECORDS]]


def _printable(value: bytes) -> str:
    """Return text of a zone that may be hostile, fit for a terminal."""
    return "".join(character for character in value[:MAX_TEXT].decode("ascii", "replace") if character.isprintable())


def _server(text: str) -> dns.nameserver.Nameserver:
    address, _, port = text.rpartition(":")
    return dns.nameserver.Do53Nameserver(str(ip_address(address.strip("[]"))), int(port))


def _told(error: Exception) -> str:
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return f"no answer within {LIFETIME:g} s"
    if isinstance(error, dns.resolver.NoNameservers):
        return "none of the resolvers gives an answer (SERVFAIL, REFUSED or unreachable)"
    return f"{type(error).__name__}: {error}"[:200]


#: Seconds from the connection to the end of the reply.
TIMEOUT = 8.0
#: Bytes of a reply that are read: an answer of our own is far shorter.
MAX_REPLY = 8_192
MAX_SERVER = 60


class HttpChallengeProbe:
    """Implements ``ports.previews.ChallengeProbe``. It resolves nothing: no name can lead it elsewhere."""

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
