"""Orders that are proven by TXT records (dns-01): of the previews' own domain, and of tenants' wildcards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from builderd.ports.domains import Certificate, OrderFailed
from builderd.services.application import Application

log = logging.getLogger(__name__)

#: Questions until the resolvers have a new record, and seconds between two of them.
VISIBLE_TRIES, VISIBLE_INTERVAL = 60, 2.0


async def issue(application: Application, account: bytes, names: Sequence[str]) -> Certificate:
    """Order one certificate for these names. Raises ``OrderFailed``."""
    authority, updates = application.authority, application.dns_updates
    if authority is None or updates is None:
        raise OrderFailed("a wildcard needs acme.dns or acme.hook, which the operator has not set")
    published: list[tuple[str, str]] = []

    async def publish(name: str, value: str) -> None:
        published.append((name, value))
        await updates.add_text(name, value)
        await _wait_until_visible(application, name, value)

    try:
        return await authority.issue_by_dns(account, names, publish)
    finally:
        for name, value in published:
            await _withdraw(application, name, value)


async def _withdraw(application: Application, name: str, value: str) -> None:
    """Remove a record. A failure leaves a record that proves nothing any more, and costs no certificate."""
    assert application.dns_updates is not None
    try:
        await application.dns_updates.remove_text(name, value)
    except OrderFailed as failure:
        log.warning("challenge record not removed name=%s error=%s", name, failure.reason)


async def _wait_until_visible(application: Application, name: str, value: str) -> None:
    """Wait until the resolvers have the record: secondary name servers get it some time later."""
    servers = application.name_servers
    assert servers is not None
    for _ in range(VISIBLE_TRIES):
        if value in (await servers.records(name.partition(".")[2], name)).texts:
            return
        await asyncio.sleep(VISIBLE_INTERVAL)
    seconds = VISIBLE_TRIES * VISIBLE_INTERVAL
    raise OrderFailed(f"the resolvers do not have the TXT record {name} {seconds:g} s after its update")
