"""Order, storage and certificate renewal of the service's own names. ``wildcard`` and ``public_certificate``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.domains import ARI_INTERVAL, LAST_CHECK_PAUSE, LAST_ORDER_PAUSE, WildcardCertificate, renewal_time
from builderd.domain.errors import BuilderdError
from builderd.domain.previews import fingerprint
from builderd.ports.domains import Certificate, OrderFailed
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
        reached = current.warning(now)
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
