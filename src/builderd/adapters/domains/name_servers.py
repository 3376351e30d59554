"""DNS records through the configured resolvers, with dnspython."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from builderd.ports.domains import CaaRecord, DnsRecords

#: Seconds for one question, all resolvers and tries together.
LIFETIME = 6.0
#: Seconds for all questions about one host: a hostile name may have over a hundred labels, each with a slow server.
TOTAL = 20.0
#: Records of a kind that are read; a hostile zone may have thousands.
MAX_RECORDS = 50
MAX_TEXT = 300


class DnsNameServers:
    """Implements ``ports.domains.NameServers``. ``resolvers`` are ``address:port``; none: those of the system."""

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
