"""The API under HTTPS: its host in the previews' proxy, and the certificate of that host by http-01."""

from __future__ import annotations

from builderd.domain.addresses import is_address
from builderd.domain.domains import public_name
from builderd.domain.previews import API, DomainAlias
from builderd.ports.domains import Certificate
from builderd.reconciler.core.loops import every
from builderd.reconciler.jobs.own_certificates import INTERVAL, OwnCertificate, RecordsWrong
from builderd.services import domains
from builderd.services.application import Application


class PublicCertificateJob:
    """``run`` continues until it is cancelled, or ends at once when the proxy does not serve the API."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._host = application.domain_rules.public_host or ""
        self._certificate = OwnCertificate(application, public_name(self._host), self._issue)

    async def run(self) -> None:
        """Keep the API's host in the proxy, with a certificate that is up to date."""
        if self._host:
            await every(INTERVAL, self.run_once, event="certificate of public_url", sleep=self._app.clock.sleep)

    async def run_once(self) -> None:
        """Order the certificate if it is due, and install what is stored."""
        if not self._app.domain_rules.orders_public or self._app.authority is None:
            await self._install(None)
            return
        # Before anything is ordered: the proxy tells visitors what is missing, and answers challenges.
        if self._host not in await self._app.previews.domains():
            await self._install(None)
        pem = await self._certificate.current()
        if pem is not None:
            await self._install(pem)

    async def _install(self, pem: str | None) -> None:
        await self._app.previews.put_domain(DomainAlias(self._host, API, pem))
        if pem is not None and is_address(self._host):
            # A client names no address in its handshake (RFC 6066, 3): what it gets is the certificate for no name.
            await self._app.previews.put_wildcard(pem)

    async def _issue(self) -> Certificate:
        if not is_address(self._host):
            reason = await domains.check_host(self._app, self._host)
            if reason is not None:
                raise RecordsWrong(reason)
        return await domains.issue(self._app, self._host)
