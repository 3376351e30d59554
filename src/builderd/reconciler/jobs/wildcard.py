"""The certificate of the previews' own domain: a wildcard by dns-01, ordered, renewed and installed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.domains import ARI_INTERVAL, WildcardCertificate, renewal_time
from builderd.domain.errors import BuilderdError
from builderd.domain.previews import fingerprint
from builderd.ports.domains import Certificate, OrderFailed
from builderd.ports.store import UnitOfWork
from builderd.reconciler.core.every import every
from builderd.services import domains
from builderd.services.application import Application

#: Seconds between two looks.
INTERVAL = 30.0
#: Questions until the resolvers have a new record, and seconds between two of them.
VISIBLE_TRIES, VISIBLE_INTERVAL = 60, 2.0

log = logging.getLogger(__name__)


class WildcardJob:
    """``run`` continues until it is cancelled, or ends at once when nothing proves the domain by DNS."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._domain = application.preview_domain.domain

    async def run(self) -> None:
        """Keep the certificate up to date and installed."""
        if self._app.authority is not None and self._app.dns_updates is not None:
            await every(INTERVAL, self.run_once, event="wildcard certificate", sleep=self._app.clock.sleep)

    async def run_once(self) -> None:
        """Order the certificate if it is due, and install what is stored."""
        now = self._app.clock.now()
        stored = await self._app.store.read(lambda uow: uow.wildcard_certificates.get(self._domain))
        current = stored or WildcardCertificate(self._domain, now)
        if current.next_try_at <= now:
            current = await self._renewed(current)
            await self._app.store.write(lambda uow: uow.wildcard_certificates.put(current))
        if current.certificate is not None:
            pem = self._app.vault.open(current.certificate, current.associated_data).decode()
            await self._app.previews.put_wildcard(pem)

    async def _renewed(self, current: WildcardCertificate) -> WildcardCertificate:
        now = self._app.clock.now()
        if (due := await self._due(current, now)) > now:
            return replace(current, next_try_at=min(due, now + ARI_INTERVAL))
        try:
            certificate = await self._issue()
        except OrderFailed as failure:
            log.warning("wildcard certificate not issued domain=%s error=%s", self._domain, failure.reason)
            return current.failed(failure.reason, now, failure.wait)
        except BuilderdError as error:
            return current.failed(error.message, now, None)
        log.info("wildcard certificate issued domain=%s end=%s", self._domain, certificate.end.isoformat())
        return self._sealed(certificate, now)

    async def _due(self, current: WildcardCertificate, now: datetime) -> datetime:
        """Return when the certificate is to be renewed: ``now`` if it is missing or could not be renewed."""
        authority = self._app.authority
        sealed, begin, end = current.certificate, current.ordered_at, current.expires_at
        if authority is None or sealed is None or begin is None or end is None or current.failures:
            return now
        wish = await authority.renewal_wish(self._app.vault.open(sealed, current.associated_data).decode())
        return renewal_time(begin, end, wish)

    def _sealed(self, certificate: Certificate, now: datetime) -> WildcardCertificate:
        made = WildcardCertificate(self._domain, now + timedelta(hours=12))
        return replace(
            made,
            certificate=self._app.vault.seal(certificate.pem.encode(), made.associated_data),
            fingerprint=fingerprint(certificate.pem),
            ordered_at=certificate.begin,
            expires_at=certificate.end,
        )

    async def _issue(self) -> Certificate:
        authority, updates = self._app.authority, self._app.dns_updates
        assert authority is not None
        assert updates is not None

        def account_key(uow: UnitOfWork) -> bytes:
            return domains.account_key(uow, self._app)

        account, published = await self._app.store.write(account_key), []

        async def publish(name: str, value: str) -> None:
            published.append((name, value))
            await updates.add_text(name, value)
            await self._wait_until_visible(name, value)

        try:
            return await authority.issue_wildcard(account, self._domain, publish)
        finally:
            for name, value in published:
                await updates.remove_text(name, value)

    async def _wait_until_visible(self, name: str, value: str) -> None:
        """Wait until the resolvers have the record: secondary name servers get it some time later."""
        names = self._app.name_servers
        assert names is not None
        for _ in range(VISIBLE_TRIES):
            if value in (await names.records(self._domain, name)).texts:
                return
            await asyncio.sleep(VISIBLE_INTERVAL)
        seconds = VISIBLE_TRIES * VISIBLE_INTERVAL
        raise OrderFailed(f"the resolvers do not have the TXT record {name} {seconds:g} s after its update")
