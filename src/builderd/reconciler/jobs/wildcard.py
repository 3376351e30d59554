"""The certificate of the previews' own domain: a wildcard by dns-01 (TXT records), ordered, renewed and installed."""

from __future__ import annotations

import asyncio
import logging

from builderd.ports.domains import Certificate, OrderFailed
from builderd.reconciler.core.loops import every
from builderd.reconciler.jobs.own_certificates import INTERVAL, OwnCertificate
from builderd.services import domains
from builderd.services.application import Application

log = logging.getLogger(__name__)

#: Questions until the resolvers have a new record, and seconds between two of them.
VISIBLE_TRIES, VISIBLE_INTERVAL = 60, 2.0


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
        authority, updates = self._app.authority, self._app.dns_updates
        assert authority is not None
        assert updates is not None
        account = await self._app.store.write(lambda uow: domains.account_key(uow, self._app))
        published: list[tuple[str, str]] = []

        async def publish(name: str, value: str) -> None:
            published.append((name, value))
            await updates.add_text(name, value)
            await self._wait_until_visible(name, value)

        try:
            return await authority.issue_by_dns(account, (self._domain, f"*.{self._domain}"), publish)
        finally:
            for name, value in published:
                # A record that stays proves nothing any more, and costs no certificate.
                try:
                    await updates.remove_text(name, value)
                except OrderFailed as failure:
                    log.warning("challenge record not removed name=%s error=%s", name, failure.reason)

    async def _wait_until_visible(self, name: str, value: str) -> None:
        """Wait until the resolvers have the record: secondary name servers get it some time later."""
        servers = self._app.name_servers
        assert servers is not None
        for _ in range(VISIBLE_TRIES):
            if value in (await servers.records(self._domain, name)).texts:
                return
            await asyncio.sleep(VISIBLE_INTERVAL)
        seconds = VISIBLE_TRIES * VISIBLE_INTERVAL
        raise OrderFailed(f"the resolvers do not have the TXT record {name} {seconds:g} s after its update")
