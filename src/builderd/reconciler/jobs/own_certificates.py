"""The service's own certificates, stored sealed: the API's by http-01, the previews' wildcard by dns-01."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.addresses import is_address
from builderd.domain.domains import (
    ARI_INTERVAL,
    LAST_CHECK_PAUSE,
    LAST_ORDER_PAUSE,
    WildcardCertificate,
    public_name,
    reached_warning,
    renewal_time,
)
from builderd.domain.errors import BuilderdError
from builderd.domain.previews import API, DomainAlias, fingerprint
from builderd.ports.previews import Certificate, OrderFailed
from builderd.reconciler.core.loops import every
from builderd.services import domains
from builderd.services.application import Application

#: Seconds between two looks.
INTERVAL = 30.0

log = logging.getLogger(__name__)


class RecordsWrong(Exception):
    """The name's own check failed: nothing was ordered. The text says what to change."""


class OwnCertificate:
    """The certificate that is stored under ``name``. ``issue`` orders it; it raises ``OrderFailed``, ``RecordsWrong``.

    Times are the wall clock's, as those in a certificate are.
    """

    def __init__(self, application: Application, name: str, issue: Callable[[], Awaitable[Certificate]]) -> None:
        self._app = application
        self._name = name
        self._issue = issue
        #: Entry of ``WARNING_DAYS`` that the log has last; a new service logs it again.
        self._warned: int | None = None

    async def current(self) -> str | None:
        """Order the certificate if it is due. Return the PEM of the stored one, None before there is any."""
        now = self._app.clock.now()
        stored = await self._app.store.read(lambda uow: uow.wildcard_certificates.get(self._name))
        current = stored or WildcardCertificate(self._name, now)
        if current.next_try_at <= now:
            current = await self._renewed(current)
            await self._app.store.write(lambda uow: uow.wildcard_certificates.put(current))
        # Logged 20, 10 and 5 days before the end: the certificate has no tenant for events.
        reached = reached_warning(current, now)
        if reached is not None and reached != self._warned and current.expires_at is not None:
            left = (current.expires_at - now).total_seconds() / 86_400
            log.warning("own certificate ends name=%s days_left=%.1f error=%s", self._name, left, current.reason)
        self._warned = reached
        if current.certificate is None:
            return None
        return self._app.vault.open(current.certificate, current.associated_data).decode()

    async def _renewed(self, current: WildcardCertificate) -> WildcardCertificate:
        now = self._app.clock.now()
        if (due := await self._due(current, now)) > now:
            return replace(current, next_try_at=min(due, now + ARI_INTERVAL))
        try:
            certificate = await self._issue()
        except RecordsWrong as wrong:
            log.warning("own certificate not ordered name=%s error=%s", self._name, wrong)
            return current.failed(str(wrong), now, most=LAST_CHECK_PAUSE)
        except OrderFailed as failure:
            log.warning("own certificate not issued name=%s error=%s", self._name, failure.reason)
            return current.failed(failure.reason, now, most=LAST_ORDER_PAUSE, wait=failure.wait)
        except BuilderdError as error:
            return current.failed(error.message, now, most=LAST_CHECK_PAUSE)
        log.info("own certificate issued name=%s end=%s", self._name, certificate.end.isoformat())
        look = min(now + timedelta(hours=12), renewal_time(certificate.begin, certificate.end, certificate.renew_at))
        made = WildcardCertificate(self._name, look)
        return replace(
            made,
            certificate=self._app.vault.seal(certificate.pem.encode(), made.associated_data),
            fingerprint=fingerprint(certificate.pem),
            ordered_at=certificate.begin,
            expires_at=certificate.end,
        )

    async def _due(self, current: WildcardCertificate, now: datetime) -> datetime:
        """Return when the certificate is to be renewed: ``now`` if it is missing or could not be renewed."""
        authority = self._app.authority
        sealed, begin, end = current.certificate, current.ordered_at, current.expires_at
        if authority is None or sealed is None or begin is None or end is None or current.failures:
            return now
        suggested = await authority.suggested_renewal(self._app.vault.open(sealed, current.associated_data).decode())
        return renewal_time(begin, end, suggested)


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
