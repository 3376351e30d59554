"""Settings: what there is, what may be in each, and what they are to the rest of the house.

``builderd.bootstrap.configuration`` reads them. Nothing else of the house reads the environment.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from builderd.domain.archives import ArchiveLimits
from builderd.domain.backups import BackupRules, Retention
from builderd.domain.previews import PreviewDomain
from builderd.domain.prices import Prices
from builderd.domain.quotas import Limit
from builderd.domain.resources import Resources
from builderd.domain.tenants import NAME
from builderd.domain.uploads import UploadRules
from builderd.domain.versions import Isolation
from builderd.services.allowances import Allowance, Allowances
from builderd.services.application import Keeping, Limits

DEFAULT_DATA_DIR = Path("/var/lib/builderd")
#: Of a unit that hands over the vault's key: LoadCredential=builderd.vault.key:/path/to/it (systemd.exec(5)).
SYSTEMD_CREDENTIAL = "builderd.vault.key"
#: Begins the names of variables.
PREFIX = "BUILDERD_"
#: Looked for in the data directory when no other file is named.
FILE_NAME = "builderd.toml"

Port = Annotated[int, Field(ge=1, le=65535)]
Price = Annotated[Decimal, Field(ge=0)]
Share = Annotated[Decimal, Field(ge=0, le=1)]
#: Leaves room for the label of a builder in the 253 characters of a host name (RFC 1035).
Domain = Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$", max_length=189)]


def _not_empty(value: Any) -> Any:
    """An empty path would be the folder that the command is run in."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty: name a folder, or unset it")
    return value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


#: A host and what stands behind it: nothing that an installer might read as a user before it.
SOURCE = re.compile(r"https?://[^\s/?#\\@]+(?:[/?#]\S*)?")


def _no_secret(url: str) -> str:
    if not SOURCE.fullmatch(url):
        raise ValueError(
            "must be http://host/… or https://host/… without a user and a password, which the code that tenants have "
            "built could read: let a proxy beside the service add them, and name that here"
        )
    return url


#: Known to every build.
PackageSource = Annotated[str, AfterValidator(_no_secret)]

#: A list in TOML; in a variable, with commas.
Networks = Annotated[tuple[IPv4Network, ...], NoDecode, BeforeValidator(_split)]


AnyNetworks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PriceSettings(Section):
    """Per hour: one vCPU, one GB of memory, one GB of disk; the shares of the first two that frozen builders pay."""

    currency: str = "EUR"
    cpu: Price = Decimal("0.12")
    memory: Price = Decimal("0.06")
    disk: Price = Decimal("0.0055")
    frozen_cpu: Share = Decimal(0)
    frozen_memory: Share = Decimal(1)


class LimitSettings(Section):
    """Upper bounds of ``resources``, in vCPU and GB; times in seconds; sizes in MB (10^6 bytes)."""

    cpu: float = Field(default=8, ge=0.25)
    memory: float = Field(default=16, ge=0.125)
    disk: float = Field(default=100, ge=1)
    isolation: Isolation = Isolation.STANDARD
    start_timeout: float = Field(default=60, gt=0)
    stop_grace: float = Field(default=10, ge=0)
    exec_output: float = Field(default=10, gt=0)
    log: float = Field(default=10, gt=0)
    upload: float = Field(default=1000, gt=0)
    uploads_per_tenant: float = Field(default=5000, gt=0)
    code: float = Field(default=1000, gt=0)
    code_files: int = Field(default=100_000, gt=0)


class IdleSettings(Section):
    """Of builders with an auto-stop interval: frozen after so many seconds without use (0: never).

    ``cpu``: an app that takes more than this part of one CPU is not idle enough to be frozen.
    """

    freeze_after: float = Field(default=60, ge=0)
    cpu: float = Field(default=0.02, ge=0)


class PreviewSettings(Section):
    """``public_port``: the port that visitors see, where something in front forwards to ``preview_port``.

    ``address_connections``: connections and HTTP/2 requests that one visitor's address may hold at a time, 0 any.
    """

    domain: Domain = "localhost"
    public_port: Port | None = None
    certificate: Path | None = None
    trusted_proxies: Networks = ()
    address_connections: int = Field(default=1_000, ge=0)


class EgressSettings(Section):
    """Networks that sandboxes may, or may not, reach besides the default policy."""

    allow: Networks = ()
    deny: Networks = ()


class StoreSettings(Section):
    """Where disks lie: a block device, or else a sparse file in the data directory of at most so many GB.

    ``floor`` GB stay free on the host whatever happens. Disks may be promised ``overcommit`` times what there is.
    """

    device: Path | None = None
    size: float | None = Field(default=None, gt=0)
    floor: float = Field(default=2, ge=0)
    overcommit: float = Field(default=1, ge=1)


class SshSettings(Section):
    """The SSH gateway listens on ``port``; 0: there is none. Callers are told ``public_host`` and ``public_port``."""

    port: int = Field(default=8022, ge=0, le=65535)
    public_host: str | None = None
    public_port: Port | None = None


class VaultSettings(Section):
    """Where the key of stored secrets comes from: ``key`` itself, or else ``key_file``.

    ``key_file`` is ``vault.key`` in the data directory unless set, and made when it is first needed.
    ``previous_keys`` still open what was sealed with them, beside ``key`` alone: a file has its own previous keys.
    All are 32 bytes in base64.
    """

    key: SecretStr | None = None
    previous_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = ()
    key_file: Path | None = None

    @model_validator(mode="after")
    def _key_of_its_own(self) -> Self:
        if self.previous_keys and self.key is None:
            raise ValueError("previous_keys go with key: set the present key too, or leave them out for a file of keys")
        return self


class BackupSettings(Section):
    """``repository``: a folder, or a back end of restic (``sftp:…``, ``rest:…``, ``s3:…``), where each tenant gets one.

    ``environment`` is what the back end wants to know; ``ssh_key`` and ``ssh_hosts`` are files for ``sftp:``. A count
    is of the hours, days and weeks whose newest backup stays. ``drill_hours`` 0: never.
    """

    repository: str | None = Field(default=None, pattern=r"^(/|[a-z][a-z0-9]*:).+$")
    environment: dict[str, SecretStr] = {}
    ssh_key: Path | None = None
    ssh_hosts: Path | None = None
    keep_hourly: int = Field(default=24, ge=0)
    keep_daily: int = Field(default=7, ge=0)
    keep_weekly: int = Field(default=4, ge=0)
    keep_deleted_days: float = Field(default=7, ge=0)
    drill_hours: float = Field(default=168, ge=0)
    check_hours: float = Field(default=168, gt=0)
    check_percent: float = Field(default=5, gt=0, le=100)

    def to_rules(self) -> BackupRules:
        return BackupRules(
            retention=Retention(self.keep_hourly, self.keep_daily, self.keep_weekly),
            keep_deleted=timedelta(days=self.keep_deleted_days),
            drill_every=timedelta(hours=self.drill_hours),
            check_every=timedelta(hours=self.check_hours),
            check_percent=self.check_percent,
        )


class TenantSettings(Section):
    """What a tenant may have (``builders``, the others of running ones, ``disk`` of all) and spend in a month."""

    builders: int | None = Field(default=None, ge=0)
    running_builders: int | None = Field(default=None, ge=0)
    cpu: float | None = Field(default=None, ge=0)
    memory: float | None = Field(default=None, ge=0)
    disk: float | None = Field(default=None, ge=0)
    monthly_cap: Price | None = None
    builder_monthly_cap: Price | None = None

    def to_allowance(self) -> Allowance:
        quota = Limit(self.builders, self.running_builders, self.cpu, self.memory, self.disk)
        return Allowance(quota, self.monthly_cap, self.builder_monthly_cap)


class RateSettings(Section):
    """A minute: calls of one token, wrong tokens from one address; 0: as many as there come."""

    requests: int = Field(default=6000, ge=0)
    failures: int = Field(default=60, ge=0)


class CapacitySettings(Section):
    """How many times what the machine has may be promised to running builders."""

    cpu: float = Field(default=16, gt=0)
    memory: float = Field(default=4, gt=0)


class ReviewSettings(Section):
    """``policy``: a YAML file in the place of the default policy.

    ``model_url`` and ``model``: an OpenAI-compatible endpoint and the name of its model, which may hold versions; off
    unless both are set. ``model_key`` is sent to it as a bearer token. ``model_timeout`` in seconds.
    """

    policy: Path | None = None
    model_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    model: str | None = None
    model_key: SecretStr | None = None
    model_timeout: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def _whole_endpoint(self) -> Self:
        if (self.model_url is None) is not (self.model is None):
            raise ValueError("model_url and model go together: set both, or none for no language model")
        return self


class QaSettings(Section):
    """``report``: test each new version on a copy once its gate has judged it. ``chromium``: the browser for that."""

    report: bool = True
    chromium: Path = Path("/usr/lib/chromium/chromium")


class WebhookSettings(Section):
    """Networks, near ones too, to which tenants may have events sent; public addresses they reach anyway."""

    allow: AnyNetworks = ()


class RetentionSettings(Section):
    """How long what is of no use any more is kept, in days; ``versions`` is a number.

    ``layers``: since somebody last asked for one that no builder has. ``events`` goes for the records of runs, build
    logs and SSH grants too, ``deliveries`` for what webhooks were sent.
    """

    layers: float = Field(default=30, ge=0.05)
    events: float = Field(default=90, ge=7)
    deliveries: float = Field(default=30, ge=1)
    versions: int = Field(default=10, ge=1)


class Settings(BaseSettings):
    """With nothing set, the service listens on this machine only and keeps everything in ``data_dir``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    data_dir: Annotated[Path, BeforeValidator(_not_empty)] = DEFAULT_DATA_DIR
    host: str = "127.0.0.1"
    port: Port = 8080
    #: Where users reach the API, when something in front of it has another address, or ``host`` is every address.
    public_url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+/?$")] | None = None
    preview_port: Port = 8081
    #: The port of a sandbox's gateway at which an app reaches its own record; nothing else may be found there.
    inside_port: Port = 8082
    database_url: Annotated[str, Field(pattern=r"^(sqlite|postgres|postgresql)(\+[a-z0-9]+)?://")] | None = None
    #: Guards ``/metrics`` on the API's port; without it, ``/metrics`` is only on ``metrics_port``.
    metrics_token: str | None = None
    metrics_port: Port | None = None
    package_index: PackageSource | None = None
    npm_registry: PackageSource | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: For tests: kill the service at this point of the reconciler, once.
    fault: str | None = None
    prices: PriceSettings = PriceSettings()
    limits: LimitSettings = LimitSettings()
    idle: IdleSettings = IdleSettings()
    preview: PreviewSettings = PreviewSettings()
    egress: EgressSettings = EgressSettings()
    store: StoreSettings = StoreSettings()
    #: What each tenant may have, and those that may have something else, by name.
    tenant: TenantSettings = TenantSettings()
    tenants: dict[str, TenantSettings] = Field(default_factory=dict)
    capacity: CapacitySettings = CapacitySettings()
    rates: RateSettings = RateSettings()
    review: ReviewSettings = ReviewSettings()
    qa: QaSettings = QaSettings()
    ssh: SshSettings = SshSettings()
    vault: VaultSettings = VaultSettings()
    webhooks: WebhookSettings = WebhookSettings()
    backup: BackupSettings = BackupSettings()
    retention: RetentionSettings = RetentionSettings()
    #: Where systemd puts the credentials of its unit; one named ``builderd.vault.key`` is the vault's key.
    credentials_directory: Path | None = Field(
        default=None, validation_alias=AliasChoices("credentials_directory", "CREDENTIALS_DIRECTORY")
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        given = (self.port, self.preview_port, self.inside_port, self.metrics_port, self.ssh.port)
        ports = [port for port in given if port]
        if len(set(ports)) != len(ports):
            raise ValueError("port, preview_port, inside_port, metrics_port and ssh.port must differ")
        return self

    @field_validator("tenants")
    @classmethod
    def _names_of_tenants(cls, tenants: dict[str, TenantSettings]) -> dict[str, TenantSettings]:
        wrong = [name for name in tenants if not NAME.fullmatch(name)]
        if wrong:
            names = ", ".join(map(repr, wrong))
            raise ValueError(f"{names}: a tenant's name is 1 to 63 lower-case letters, digits and hyphens inside")
        return tenants

    @property
    def database(self) -> str:
        """The URL of the database: SQLite in the data directory unless another is set."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute()}/builderd.db"

    @property
    def vault_key_file(self) -> Path:
        """The file of the vault's keys, where no key is given."""
        return self.vault.key_file or self._handed_over or self.data_dir / "vault.key"

    @property
    def _handed_over(self) -> Path | None:
        file = self.credentials_directory / SYSTEMD_CREDENTIAL if self.credentials_directory else None
        return file if file and file.is_file() else None

    @property
    def api_url(self) -> str:
        """Where users reach the API, as far as that is known: nobody does so at an address that means all of them."""
        if self.public_url:
            return self.public_url.rstrip("/")
        try:
            address = ip_address(self.host)
        except ValueError:
            return f"http://{self.host}:{self.port}"
        if address.is_unspecified:
            return ""
        return f"http://[{address}]:{self.port}" if address.version == 6 else f"http://{address}:{self.port}"

    @property
    def preview_domain(self) -> PreviewDomain:
        """Where visitors find previews; the scheme's own port is left out of URLs."""
        scheme = "https" if self.preview.certificate else "http"
        port = self.preview.public_port or self.preview_port
        return PreviewDomain(scheme, self.preview.domain, None if port == STANDARD_PORTS[scheme] else port)

    def to_prices(self) -> Prices:
        return Prices(**self.prices.model_dump())

    def to_allowances(self) -> Allowances:
        """A tenant's own settings go before those of every tenant, one by one."""
        common = self.tenant.model_dump()
        return Allowances(
            default=self.tenant.to_allowance(),
            tenants={
                name: TenantSettings(**common | own.model_dump(exclude_unset=True)).to_allowance()
                for name, own in self.tenants.items()
            },
            cpu_factor=self.capacity.cpu,
            memory_factor=self.capacity.memory,
        )

    def to_keeping(self) -> Keeping:
        days = {name: timedelta(days=getattr(self.retention, name)) for name in ("layers", "events", "deliveries")}
        return Keeping(**days)

    def to_upload_rules(self) -> UploadRules:
        limits = self.limits
        return UploadRules(int(limits.upload * 1_000_000), int(limits.uploads_per_tenant * 1_000_000))

    def to_archive_limits(self) -> ArchiveLimits:
        return ArchiveLimits(max_files=self.limits.code_files, max_bytes=int(self.limits.code * 1_000_000))

    def to_limits(self) -> Limits:
        limits = self.limits
        return Limits(
            maximum=Resources(limits.cpu, limits.memory, limits.disk),
            default_isolation=limits.isolation,
            start_timeout=limits.start_timeout,
            stop_grace=limits.stop_grace,
            exec_output=int(limits.exec_output * 1_000_000),
            kept_versions=self.retention.versions,
            freeze_after=self.idle.freeze_after,
            quiet_cpu=self.idle.cpu,
            qa_report=self.qa.report,
        )


STANDARD_PORTS = {"http": 80, "https": 443}
