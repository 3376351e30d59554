"""The application: ports and rules that services and interfaces share, put together once at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from builderd.backups.model import BackupRules
from builderd.backups.port import BackupRepository
from builderd.builders.model import Builder
from builderd.builders.signals import Signals, StalledEnds
from builderd.code.model import ArchiveLimits
from builderd.code.port import Bundles, Uploads
from builderd.code.space import CodeSpace
from builderd.core.clock import Clock
from builderd.core.ids import BuilderId, SandboxId
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.domains.model import DomainRules
from builderd.engine.port import Engine
from builderd.executions.model import Gateway
from builderd.files.model import UploadRules
from builderd.metrics.model import UsageSample
from builderd.money.model import Prices
from builderd.previews.model import PreviewDomain
from builderd.previews.port import CertificateAuthority, ChallengeProbe, DnsUpdates, NameServers, Previews
from builderd.qa.port import Installer, Testers
from builderd.review.service import Gate
from builderd.tokens.limits import Limits, RetentionPolicy, TenantLimits
from builderd.tokens.port import IdentityProvider, Vault, WebhookSender


class OfBuilder(Protocol):
    """Result of a change to a builder."""

    @property
    def builder(self) -> Builder: ...


Change = TypeVar("Change", bound=Builder | OfBuilder)


@dataclass(frozen=True, slots=True)
class Application:
    """Ports and rules of one service.

    ``instance`` names this service, over its restarts, in claims and in work that it began. ``member`` is the id under
    which it owns the database (``Instance.member``); new builders carry it. It has no
    mutable fields: what this process remembers is in the ports, ``usage``, ``scratch``, ``stalled`` and
    ``code_space``.
    """

    store: Store
    engine: Engine
    previews: Previews
    bundles: Bundles
    installer: Installer
    testers: Testers
    review: Gate
    signals: Signals
    clock: Clock
    vault: Vault
    webhooks: WebhookSender
    limits: Limits
    prices: Prices
    preview_domain: PreviewDomain
    instance: str
    backup_repository: BackupRepository
    uploads: Uploads
    #: The last samples of builders that run.
    usage: dict[BuilderId, UsageSample]
    #: Sandboxes for a report or a drill, in no row of the database; those of an earlier process are swept away.
    scratch: set[SandboxId]
    stalled: StalledEnds = field(default_factory=StalledEnds)
    code_space: CodeSpace = field(default_factory=CodeSpace)
    member: str = ""
    #: URL of the API for callers, if it differs from the one that they use.
    public_url: str | None = None
    upload_rules: UploadRules = field(default_factory=UploadRules)
    archive_limits: ArchiveLimits = field(default_factory=ArchiveLimits)
    #: Address of the SSH gateway; None without one.
    ssh: Gateway | None = None
    #: Custom domains: without ``name_servers`` they are off; without ``authority`` they get no certificates.
    domain_rules: DomainRules = field(default_factory=DomainRules)
    name_servers: NameServers | None = None
    challenge_probe: ChallengeProbe | None = None
    authority: CertificateAuthority | None = None
    #: Proves the previews' domain by DNS, for their wildcard certificate; None without such.
    dns_updates: DnsUpdates | None = None
    #: With whom people may sign in to the web pages, besides tokens and links.
    identity_provider: IdentityProvider | None = None
    backup_rules: BackupRules = field(default_factory=BackupRules)
    tenant_limits: TenantLimits = field(default_factory=TenantLimits)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)

    async def commit(self, work: Callable[[UnitOfWork], Change]) -> Change:
        """Write in one transaction, then signal the reconciler and the waiters of the result's builder.

        Those who wait for its outcome are woken only if it has one.
        """
        result = await self.store.write(work)
        builder = result if isinstance(result, Builder) else result.builder
        self.signals.desired_changed(builder.id)
        if builder.settled:
            self.signals.change(builder.id)
        else:
            self.signals.progress(builder.id)
        return result
