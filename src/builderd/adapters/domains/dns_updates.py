"""Changes of TXT records by dynamic updates (RFC 2136), signed with TSIG (RFC 8945)."""

from __future__ import annotations

from dataclasses import dataclass

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update

from builderd.ports.domains import OrderFailed

TIMEOUT = 10.0
TTL = 60
ALGORITHM = "hmac-sha256"


@dataclass(frozen=True, slots=True)
class TsigKey:
    """Key of updates, written as for nsupdate: ``[algorithm:]name:secret``, with the secret in base64."""

    name: str
    secret: str
    algorithm: str = ALGORITHM

    @classmethod
    def parse(cls, text: str) -> TsigKey:
        """Parse a key. Raises ``ValueError`` for a text of another form."""
        parts = text.split(":")
        if len(parts) == 2:
            return cls(*parts)
        if len(parts) == 3:
            return cls(parts[1], parts[2], parts[0])
        raise ValueError("a key of updates is [algorithm:]name:secret")


class Rfc2136Updates:
    """Implements ``ports.domains.DnsUpdates``. ``server`` is ``address:port`` of the zone's primary name server."""

    def __init__(self, server: str, key: TsigKey) -> None:
        address, _, port = server.rpartition(":")
        self._address, self._port = address.strip("[]"), int(port)
        self._key = key

    async def add_text(self, name: str, value: str) -> None:
        update, owner = await self._update(name)
        # A wildcard and its apex have two values at one name: the other one stays.
        update.add(owner, TTL, "TXT", _quoted(value))
        await self._send(update)

    async def remove_text(self, name: str, value: str) -> None:
        update, owner = await self._update(name)
        update.delete(owner, "TXT", _quoted(value))
        await self._send(update)

    async def _update(self, name: str) -> tuple[dns.update.UpdateMessage, dns.name.Name]:
        owner = dns.name.from_text(name)
        zone = await self._zone(owner)
        key = dns.tsig.Key(self._key.name, self._key.secret, self._key.algorithm)
        update = dns.update.UpdateMessage(zone, keyring=key)
        return update, owner.relativize(zone)

    async def _zone(self, owner: dns.name.Name) -> dns.name.Name:
        """Return the zone of a name: the closest one above of which the server has the SOA record."""
        zone = owner.parent()
        while zone != dns.name.root:
            answer = await self._exchange(dns.message.make_query(zone, "SOA"))
            if any(one.rdtype == dns.rdatatype.SOA and one.name == zone for one in answer.answer):
                return zone
            zone = zone.parent()
        raise OrderFailed(f"the name server {self._address} has no zone for {owner.to_text(omit_final_dot=True)}")

    async def _send(self, update: dns.update.UpdateMessage) -> None:
        code = (await self._exchange(update)).rcode()
        if code != dns.rcode.NOERROR:
            raise OrderFailed(f"the name server {self._address} refused the update: {dns.rcode.to_text(code)}")

    async def _exchange(self, query: dns.message.Message) -> dns.message.Message:
        try:
            answer, _ = await dns.asyncquery.udp_with_fallback(query, self._address, TIMEOUT, self._port)
        except (dns.exception.DNSException, OSError) as error:
            raise OrderFailed(f"the name server {self._address} gives no answer: {type(error).__name__}") from error
        return answer


def _quoted(value: str) -> str:
    return f'"{value}"'
