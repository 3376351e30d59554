"""Ports of custom domains: name servers, a look at the challenge path, and a certificate authority."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

#: Publishes the answer of a challenge's token until the order has ended.
Publish = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CaaRecord:
    """CAA record (RFC 8659)."""

    tag: str
    value: str


@dataclass(frozen=True, slots=True)
class DnsRecords:
    """Records of a host. ``alias`` is the end of its CNAME chain, "" without one.

    ``caa`` are those of the closest name that has any. ``texts`` are the values of its TXT record of ownership.
    ``error``: why the name servers gave no answer; the rest is empty then.
    """

    addresses: tuple[str, ...] = ()
    alias: str = ""
    caa: tuple[CaaRecord, ...] = ()
    texts: tuple[str, ...] = ()
    error: str = ""


class NameServers(Protocol):
    async def records(self, host: str, text_name: str) -> DnsRecords:
        """Ask the configured resolvers for the records of ``host``, and for the TXT record ``text_name``.

        Raises nothing for what the resolvers answer or do not answer.
        """


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """Answer at the challenge path. ``status`` None: no answer, for the reason in ``error``."""

    status: int | None
    body: str = ""
    #: Value of the header ``Server``; "" without one.
    server: str = ""
    error: str = ""


class ChallengeProbe(Protocol):
    async def get(self, address: str, port: int, host: str, path: str) -> ProbeReply:
        """Request the path of ``host`` from exactly this address, in bounded time; follow no redirect."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Issued certificate: PEM of its chain and key, without empty lines."""

    pem: str
    begin: datetime
    end: datetime
    #: When the authority wants it renewed (ARI, RFC 9773); None where it does not say.
    renew_at: datetime | None = None


class OrderFailed(Exception):
    """The authority issued no certificate; the text says why. ``wait``: it wants no order before that time passed."""

    def __init__(self, reason: str, wait: timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class CertificateAuthority(Protocol):
    def new_account_key(self) -> bytes:
        """Return a new private key for an account."""

    async def issue(self, account_key: bytes, host: str, publish: Publish) -> Certificate:
        """Order a certificate for the host, proven by ``publish``. Raises ``OrderFailed``."""

    async def issue_by_dns(self, account_key: bytes, names: Sequence[str], publish: Publish) -> Certificate:
        """Order one certificate for hosts and wildcards (``*.example.com``). Raises ``OrderFailed``.

        ``publish`` gets the names and the values of TXT records, and returns once they can be seen.
        """

    async def suggested_renewal(self, pem: str) -> datetime | None:
        """Return when the authority suggests a certificate renewal (ARI); None where it does not say or answer."""

    async def identities(self) -> frozenset[str]:
        """Return the names by which CAA records allow this authority; none when it does not say or answer."""


class DnsUpdates(Protocol):
    """Changes of TXT records at the zone's own name server (RFC 2136). Methods raise ``OrderFailed``."""

    async def add_text(self, name: str, value: str) -> None:
        """Add a value to the TXT records of a name."""

    async def remove_text(self, name: str, value: str) -> None:
        """Remove this value. Idempotent."""
