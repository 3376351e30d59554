"""Build the ``Application`` from its real adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from socket import gethostname

import asyncssh

from builderd.application import Application
from builderd.bootstrap.bundles import make_backup_repository, open_bundles, open_uploads
from builderd.bootstrap.database_lease import OwnedStore
from builderd.bootstrap.domains import make_authority, make_dns_updates, make_domain_rules
from builderd.bootstrap.engines import engine_provider, make_engine
from builderd.bootstrap.keys import make_vault
from builderd.bootstrap.review import make_review_gate
from builderd.builders.signals import Signals
from builderd.code.space import CodeSpace
from builderd.dependencies.installers.installers import Installers, UvInstaller
from builderd.dependencies.installers.npm import NpmInstaller
from builderd.domains.name_servers import DnsNameServers, HttpChallengeProbe
from builderd.executions import model as processes
from builderd.linux.clock import SystemClock
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.qa.testers.local import LocalTesters
from builderd.settings import OpenIdSettings, Settings
from builderd.ssh import host_key
from builderd.tokens.model import ClaimRules
from builderd.tokens.openid import OpenIdOptions, OpenIdProvider
from builderd.webhooks.http import HttpWebhookSender


@asynccontextmanager
async def application(settings: Settings, owned: OwnedStore, previews: HaproxyPreviews) -> AsyncIterator[Application]:
    """Yield the application on its real adapters; the engine and the proxy are not started yet."""
    clock = SystemClock(settings.data_dir / "clock.json")
    engine = make_engine(settings, clock, previews.is_reserved)
    testers = LocalTesters(settings.qa.chromium)
    review = make_review_gate(settings)
    keeping = asyncio.create_task(clock.save_periodically())
    try:
        yield Application(
            store=owned.store,
            engine=engine,
            previews=previews,
            bundles=await open_bundles(settings, owned.store),
            uploads=open_uploads(settings, owned.store),
            public_url=settings.public_url,
            upload_rules=settings.to_upload_rules(),
            archive_limits=settings.to_archive_limits(),
            installer=Installers(
                UvInstaller(version("uv"), settings.package_index), NpmInstaller(settings.npm_registry)
            ),
            testers=testers,
            review=review,
            signals=Signals(),
            clock=clock,
            vault=make_vault(settings),
            webhooks=HttpWebhookSender(settings.webhooks.allow, engine_provider(settings).networks),
            limits=settings.to_limits(),
            code_space=CodeSpace(settings.limits.code_share),
            prices=settings.to_prices(),
            tenant_limits=settings.to_tenant_limits(),
            ssh=_ssh_gateway(settings),
            domain_rules=make_domain_rules(settings),
            name_servers=DnsNameServers(settings.acme.resolvers),
            challenge_probe=HttpChallengeProbe(),
            authority=make_authority(settings),
            dns_updates=make_dns_updates(settings),
            identity_provider=make_identity_provider(settings.openid),
            preview_domain=settings.preview_domain,
            instance=owned.instance.identity,
            member=owned.instance.member,
            backup_repository=make_backup_repository(settings, lambda: engine.tools),
            backup_rules=settings.backup.to_rules(),
            retention=settings.to_retention_policy(),
            usage={},
            scratch=set(),
        )
    finally:
        keeping.cancel()
        await review.close()
        await engine.close()
        clock.save()


def _ssh_gateway(settings: Settings) -> processes.Gateway | None:
    """Return the gateway's address and host key as the API shows them, or None when it is turned off."""
    if not settings.ssh.port:
        return None
    # No client can connect to every address of the machine.
    own = gethostname() if settings.host in ("", "0.0.0.0", "::") else settings.host  # noqa: S104 (compared, not bound)
    host = settings.ssh.public_host or own
    return host_key.gateway(load_host_key(settings), host, settings.ssh.public_port or settings.ssh.port)


def load_host_key(settings: Settings) -> asyncssh.SSHKey:
    return host_key.load(settings.data_dir / "ssh_host_key")


def make_identity_provider(openid: OpenIdSettings) -> OpenIdProvider | None:
    """Return the provider with which people sign in to the web pages, None where none is set."""
    if openid.issuer is None or openid.client_id is None:
        return None
    secret = openid.client_secret.get_secret_value() if openid.client_secret is not None else None
    claims = ClaimRules(openid.tenant_claim, openid.scope_claim)
    return OpenIdProvider(OpenIdOptions(openid.issuer, openid.client_id, secret, openid.scope, openid.name, claims))
