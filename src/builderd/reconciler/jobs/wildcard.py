"""The certificate of the previews' own domain: a wildcard by dns-01, ordered, renewed and installed."""

from __future__ import annotations

from builderd.ports.domains import Certificate
from builderd.reconciler.core.every import every
from builderd.reconciler.jobs.own_certificates import INTERVAL, OwnCertificate
from builderd.services import dns_challenges, domains
from builderd.services.application import Application


class WildcardJob:
    """``run`` continues until it is cancelled, or ends at once when nothing proves the domain by DNS."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._domain = application.preview_domain.domain
        self._certificate = OwnCertificate(application, self._domain, self._issue)

    async def run(self) -> None:
        """Keep the certificate up to date and installed."""
        if self._app.domain_rules.orders_previews:
            await every(INTERVAL, self.run_once, event="wildcard certificate", sleep=self._app.clock.sleep)

    async def run_once(self) -> None:
        """Order the certificate if it is due, and install what is stored."""
        pem = await self._certificate.current()
        if pem is not None:
            await self._app.previews.put_wildcard(pem)

    async def _issue(self) -> Certificate:
        account = await self._app.store.write(lambda uow: domains.account_key(uow, self._app))
        return await dns_challenges.issue(self._app, account, (self._domain, f"*.{self._domain}"))
