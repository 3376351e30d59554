"""The proxy of previews, and custom domains: name servers, a look at the challenge path, certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from builderd.previews.model import DomainAlias, PreviewActivity, PreviewLink, Route

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
        """Return when the authority suggests to renew a certificate (ARI); None where it does not say or answer."""

    async def identities(self) -> frozenset[str]:
        """Return the names by which CAA records allow this authority; none when it does not say or answer."""


class DnsUpdates(Protocol):
    """Changes of TXT records at the zone's own name server (RFC 2136). Methods raise ``OrderFailed``."""

    async def add_text(self, name: str, value: str) -> None:
        """Add a value to the TXT records of a name."""

    async def remove_text(self, name: str, value: str) -> None:
        """Remove this value. Idempotent."""


#: Returns routes of hosts that are not among those with a route.
LostRoutes = Callable[[Collection[str]], Awaitable[Sequence[Route]]]


class Previews(Protocol):
    async def start(self, lost: LostRoutes | None = None) -> None:
        """Adopt the running proxy or start one, with the routes it had. Idempotent.

        The routes that ``lost`` returns are put before the proxy accepts requests.

        Raises ``EngineUnavailable`` with the reason (port taken, program missing).
        """

    async def supervise(self) -> None:
        """Restart the proxy whenever it dies, until cancelled. Call ``start`` first."""

    async def ready(self) -> bool:
        """Return True if the proxy answers on its control socket."""

    async def put(self, route: Route) -> None:
        """Set or replace the route of a host; in force when this returns. Idempotent."""

    async def get(self, host: str) -> Route | None:
        """The route in force, or None."""

    async def remove(self, host: str) -> None:
        """Remove the host's route: its visitors get a 404. Idempotent."""

    async def routes(self) -> Mapping[str, Route]:
        """All routes by host."""

    async def activity(self) -> Mapping[str, PreviewActivity]:
        """Return the counters of the hosts that were visited since the proxy started."""

    def visitors(self) -> AsyncIterator[str]:
        """Yield a host as soon as a request is paused at its ``asleep`` route.

        A host is yielded once for all its paused requests, and again only if the pause lasts, the service restarted, or
        ``asleep`` is put again during the pause.
        """

    async def reject_visitors(self, host: str) -> None:
        """Answer the host's paused requests, and those of the next moments, with the page for a full machine.

        Later requests are paused again.
        """

    async def open_requests(self, host: str) -> int:
        """Return the number of open requests of the host, without event streams and WebSockets.

        It includes each request that is to reach the app by an earlier route than the present one.
        """

    async def put_domain(self, alias: DomainAlias) -> None:
        """Set or replace a custom domain, and its certificate for new connections. Idempotent.

        Nothing is reloaded and no connection lost. A proxy that speaks no TLS ignores the certificate.
        """

    async def remove_domain(self, host: str) -> None:
        """Remove a custom domain and its certificate. Idempotent."""

    async def domains(self) -> Mapping[str, tuple[str, str | None]]:
        """Return the preview host and the certificate's fingerprint of each custom domain."""

    async def put_wildcard(self, certificate: str) -> None:
        """Serve all hosts without a certificate of their own with this PEM of key and chain. Idempotent.

        A proxy that speaks no TLS ignores it.
        """

    async def refresh_links(self, load: Callable[[], Awaitable[Collection[PreviewLink]]]) -> None:
        """Let exactly the links that ``load`` returns open their previews; each ends by itself at its time.

        One call at a time loads and applies them. Idempotent.
        """

    async def put_challenge(self, token: str, answer: str) -> None:
        """Answer ``/.well-known/acme-challenge/<token>`` of any host with this text. Lost when the proxy restarts.

        No request below that path ever reaches an app.
        """

    async def remove_challenge(self, token: str) -> None:
        """Idempotent."""

    async def down(self) -> None:
        """End the proxy and remove its files. Idempotent."""
