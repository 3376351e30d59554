"""Custom domains and the service's own: checks, orders, certificate renewal; keeps the proxy to the stored ones.

A step acts on the world first and is recorded second; a service that is killed in between takes the domain up again.
Each tenant has one domain in work at a time, so that one with many keeps no other waiting.
The service's own certificates are stored sealed: the API's by http-01, the previews' wildcard by dns-01.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.core.addresses import is_address
from builderd.core.errors import BuilderdError, StoreUnavailable
from builderd.core.ids import DomainId, TenantId
from builderd.core.loops import FaultPoint, end_tasks, every, no_fault
from builderd.database.connection import Kind
from builderd.domains import service as domains
from builderd.domains.model import (
    ARI_INTERVAL,
    LAST_CHECK_PAUSE,
    LAST_ORDER_PAUSE,
    Domain,
    DomainRoute,
    WildcardCertificate,
    public_name,
    reached_warning,
    renewal_time,
)
from builderd.previews.model import API, DomainAlias, fingerprint
from builderd.previews.port import Certificate, OrderFailed

#: Seconds after which everything is looked at again, and the least between two looks.
LOOK_INTERVAL, LEAST_INTERVAL = 5.0, 1.0
#: Between two rounds of old claims and of warnings, in seconds.
UPKEEP_INTERVAL = 3_600.0
#: Between two comparisons of all domains with the proxy's, in seconds: what changes is applied at once.
SYNC_INTERVAL = 600.0
#: Domains in work at a time, and released ones that are taken from the proxy in one go.
MAX_TASKS, MAX_RELEASED = 8, 200

log = logging.getLogger(__name__)


class DomainJob:
    """``run`` continues until it is cancelled. What was in work then is due again after a restart."""

    def __init__(self, application: Application, fault: FaultPoint = no_fault) -> None:
        self._app = application
        self._fault = fault
        self._in_work: dict[TenantId, asyncio.Task[None]] = {}
        self._concurrency = asyncio.Semaphore(MAX_TASKS)
        self._syncing = asyncio.Lock()
        self._next_upkeep = 0.0
        #: When all domains are compared again; at once after a change that the proxy did not take.
        self._next_sync = 0.0

    async def run(self) -> None:
        """Work on due domains and keep the proxy's up to date, until cancelled."""
        if self._app.name_servers is None:
            return
        try:
            tls, now = self._app.authority is not None, self._app.clock.now()
            try:
                await self._app.store.write(lambda uow: domains.resume(uow, tls=tls, now=now))
            except StoreUnavailable as error:
                log.warning("domains in work not resumed, their lease ends by itself error=%s", error.message)
            intervals = {"interval": LOOK_INTERVAL, "pause": LEAST_INTERVAL}
            await self._app.store.call_after_writes(self.poll, Kind.DOMAINS, **intervals, event="domain poll")
        finally:
            await end_tasks(*self._in_work.values())

    async def poll(self) -> None:
        """Bring the proxy up to date, and begin work on due domains. Reads what is due, by an index."""
        now, store = self._app.clock.now(), self._app.store
        released, due = await store.read(
            lambda uow: (uow.domains.released(now, MAX_RELEASED), uow.domains.due(now, 10 * MAX_TASKS))
        )
        if released or time.monotonic() >= self._next_sync:
            await self.sync()
        if released:
            await store.write(lambda uow: uow.domains.withdrawn([domain_id for domain_id, _ in released]))
        for tenant_id, domain_id in due:
            if tenant_id not in self._in_work:
                self._in_work[tenant_id] = asyncio.create_task(self._work(tenant_id, domain_id))
        if time.monotonic() >= self._next_upkeep:
            self._next_upkeep = time.monotonic() + UPKEEP_INTERVAL
            await self.upkeep()

    async def rest(self) -> None:
        """Wait until the work that is under way has ended."""
        await asyncio.gather(*self._in_work.values())

    async def upkeep(self) -> None:
        """Drop old claims, and tell of certificates that end soon."""
        now, store = self._app.clock.now(), self._app.store
        await store.write(lambda uow: domains.expire(uow, self._app.clock.deletable()))
        await store.write(lambda uow: domains.warn(uow, now))

    async def sync(self) -> None:
        """Make the proxy's domains and certificates those of the store."""
        async with self._syncing:
            routes = await self._app.store.read(lambda uow: uow.domains.routes())
            wanted = {one.host: one for one in routes}
            have = await self._app.previews.domains()
            # The API's host is ``public_certificate``'s.
            wanted.pop(own := self._app.domain_rules.public_host or "", None)
            for host in have.keys() - wanted.keys() - {own}:
                await self._app.previews.remove_domain(host)
                log.info("domain removed from the proxy host=%s", host)
            installed = [await self._install(route, have) for route in wanted.values()]
            self._next_sync = time.monotonic() + (SYNC_INTERVAL if all(installed) else 0)

    async def _install(self, route: DomainRoute, have: Mapping[str, tuple[str, str | None]]) -> bool:
        """Install one domain; return False for a fault, which keeps no other from being installed."""
        fingerprint = route.fingerprint if self._app.authority is not None else None
        if have.get(route.host) == (route.builder_host, fingerprint):
            return True
        try:
            pem = await self._opened(route.id) if fingerprint is not None else None
            await self._app.previews.put_domain(DomainAlias(route.host, route.builder_host, pem))
            log.info("domain installed host=%s certificate=%s", route.host, "no" if pem is None else "yes")
        except BuilderdError as error:
            log.warning("domain not installed, retrying host=%s error=%s", route.host, error.message)
            return False
        return True

    async def _opened(self, domain_id: DomainId) -> str | None:
        domain = await self._app.store.read(lambda uow: uow.domains.get(domain_id))
        if domain is None or domain.certificate is None:
            return None
        return self._app.vault.open(domain.certificate, domain.associated_data).decode()

    async def _work(self, tenant_id: TenantId, domain_id: DomainId) -> None:
        try:
            async with self._concurrency:
                await self._advance(domain_id)
        except Exception:
            log.warning("domain work failed, retrying after its lease domain=%s", domain_id, exc_info=True)
        finally:
            del self._in_work[tenant_id]

    async def _advance(self, domain_id: DomainId) -> None:
        """Check one due domain, and order its certificate if the check passes."""
        now, store = self._app.clock.now(), self._app.store
        domain = await store.write(lambda uow: domains.begin(uow, domain_id, now))
        if domain is None:
            return
        self._changed(domain)
        self._fault("domain.begun")
        if await self._is_early(domain):
            return
        found = await domains.check(self._app, domain)
        self._fault("domain.checked")
        ready = await store.write(
            lambda uow: domains.checked(uow, self._app, domain_id, reason=found.reason, owns_text=found.owns_text)
        )
        log.info("domain checked host=%s reason=%s", domain.host, found.reason or "none")
        self._changed(domain)
        await self.sync()
        if ready is not None:
            await self._order(ready)

    async def _is_early(self, domain: Domain) -> bool:
        """Return True, and look again later, if the certificate in use need not be renewed yet."""
        authority, now = self._app.authority, self._app.clock.now()
        if authority is None or domain.expires_at is None or domain.ordered_at is None or domain.failures:
            return False
        pem = await self._opened(domain.id)
        if pem is None:
            return False
        suggested = await authority.suggested_renewal(pem)
        due = renewal_time(domain.ordered_at, domain.expires_at, suggested)
        if due <= now:
            return False
        again = min(due, now + ARI_INTERVAL)
        await self._app.store.write(lambda uow: domains.postpone(uow, domain.id, again))
        return True

    async def _order(self, domain: Domain) -> None:
        store, now = self._app.store, self._app.clock.now
        try:
            certificate = await domains.issue(self._app, domain.host)
        except OrderFailed as failure:
            failed = failure
            log.warning("certificate not issued host=%s error=%s", domain.host, failure.reason)
            await store.write(lambda uow: domains.order_failed(uow, domain.id, failed, now()))
        except BuilderdError as error:
            failed = OrderFailed(error.message)
            await store.write(lambda uow: domains.order_failed(uow, domain.id, failed, now()))
        else:
            self._fault("domain.issued")
            await store.write(lambda uow: domains.issued(uow, self._app, domain.id, certificate))
            log.info("certificate issued host=%s end=%s", domain.host, certificate.end.isoformat())
            self._fault("domain.recorded")
            await self.sync()
        self._changed(domain)

    def _changed(self, domain: Domain) -> None:
        self._app.signals.change(domain.builder_id)


#: Seconds between two looks.
INTERVAL = 30.0


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
