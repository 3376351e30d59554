"""The application: ports and rules that services and interfaces share, put together once at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from builderd.domain.backups import BackupRules
from builderd.domain.builders import Builder
from builderd.domain.bundles import ArchiveLimits
from builderd.domain.domains import DomainRules
from builderd.domain.files import UploadRules
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.metrics import UsageSample
from builderd.domain.previews import PreviewDomain
from builderd.domain.prices import Prices
from builderd.domain.processes import Gateway
from builderd.ports.backup_repository import BackupRepository
from builderd.ports.clock import Clock
from builderd.ports.engine import Engine
from builderd.ports.files import Bundles, Uploads
from builderd.ports.gates import Installer, Testers
from builderd.ports.outside import IdentityProvider, Vault, WebhookSender
from builderd.ports.previews import CertificateAuthority, ChallengeProbe, DnsUpdates, NameServers, Previews
from builderd.services.code_space import CodeSpace
from builderd.services.limits import Limits, RetentionPolicy, TenantLimits
from builderd.services.reviews import Gate
from builderd.services.signals import Signals, StalledEnds
from builderd.store import Store, UnitOfWork


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
