"""All settings as one value, read once and passed inwards."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from builderd.code.model import ArchiveLimits
from builderd.core.resources import Resources
from builderd.files.model import UploadRules
from builderd.money.model import Prices
from builderd.previews.model import PreviewDomain, is_host
from builderd.settings.sections import (
    AcmeSettings,
    BackupSettings,
    CapacitySettings,
    EgressSettings,
    IdleSettings,
    IncusSettings,
    LimitSettings,
    MoneySettings,
    OpenIdSettings,
    PackageSource,
    Port,
    PreviewSettings,
    PriceSettings,
    QaSettings,
    RateSettings,
    RetentionSettings,
    ReviewSettings,
    SshSettings,
    StoreSettings,
    TenantSettings,
    VaultSettings,
    WebhookSettings,
    not_empty,
)
from builderd.tokens.limits import Limits, RetentionPolicy, TenantLimits
from builderd.tokens.model import NAME

DEFAULT_DATA_DIR = Path("/var/lib/builderd")
#: Credential of a unit with the vault's key: LoadCredential=builderd.vault.key:/path/to/it (systemd.exec(5)).
SYSTEMD_CREDENTIAL = "builderd.vault.key"
#: Prefix of the environment variables.
PREFIX = "BUILDERD_"
#: Read from the data directory when no other file is named.
FILE_NAME = "builderd.toml"


class Settings(BaseSettings):
    """All settings. By default the service listens on loopback and keeps its data in ``data_dir``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    data_dir: Annotated[Path, BeforeValidator(not_empty)] = DEFAULT_DATA_DIR
    host: str = "127.0.0.1"
    port: Port = 8080
    #: The API's URL for users, if a proxy has another address, or if ``host`` is every address.
    public_url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+/?$")] | None = None
    #: Seconds for which browsers then reach ``public_url``'s host by HTTPS alone (HSTS); 0: they are not told to.
    hsts: int = Field(default=0, ge=0)
    preview_port: Port = 8081
    #: The port of the sandbox API on a sandbox's gateway; sandboxes reach no other port there.
    inside_port: Port = 8082
    #: Name of the engine that runs sandboxes, one of the registry (``bootstrap.engines``).
    engine: str = "oci"
    database_url: Annotated[str, Field(pattern=r"^(sqlite|postgres|postgresql)(\+[a-z0-9]+)?://")] | None = None
    #: Required for ``/metrics`` on the API's port; without it, ``/metrics`` is only on ``metrics_port``.
    metrics_token: str | None = None
    metrics_port: Port | None = None
    package_index: PackageSource | None = None
    npm_registry: PackageSource | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: For tests: kill the service once at this fault point of the reconciler.
    fault: str | None = None
    prices: PriceSettings = PriceSettings()
    money: MoneySettings = MoneySettings()
    limits: LimitSettings = LimitSettings()
    idle: IdleSettings = IdleSettings()
    preview: PreviewSettings = PreviewSettings()
    acme: AcmeSettings = AcmeSettings()
    openid: OpenIdSettings = OpenIdSettings()
    egress: EgressSettings = EgressSettings()
    store: StoreSettings = StoreSettings()
    #: For the engine ``incus``.
    incus: IncusSettings = IncusSettings()
    #: Limits of every tenant, and of single tenants by name.
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
    #: The folder of the unit's systemd credentials; ``builderd.vault.key`` in it is the vault's key.
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
        named = {
            "port": self.port,
            "preview_port": self.preview_port,
            "preview.tls_port": self.preview.tls_port,
            "inside_port": self.inside_port,
            "metrics_port": self.metrics_port,
            "ssh.port": self.ssh.port,
        }
        ports = [port for port in named.values() if port]
        if len(set(ports)) != len(ports):
            raise ValueError(f"{', '.join(named)} must differ")
        return self

    @field_validator("tenants")
    @classmethod
    def _names_of_tenants(cls, tenants: dict[str, TenantSettings]) -> dict[str, TenantSettings]:
        wrong = [name for name in tenants if not NAME.fullmatch(name)]
        if wrong:
            names = ", ".join(map(repr, wrong))
            raise ValueError(
                f"{names}: a tenant's name is 1 to 63 lower-case letters, digits and hyphens, without one at its ends"
            )
        return tenants

    @property
    def database(self) -> str:
        """Return the database's URL: SQLite in the data directory unless another is set."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute()}/builderd.db"

    @property
    def vault_key_file(self) -> Path:
        """Return the file of the vault's keys; used when ``vault.key`` is not set."""
        return self.vault.key_file or self._systemd_key_file or self.data_dir / "vault.key"

    @property
    def _systemd_key_file(self) -> Path | None:
        file = self.credentials_directory / SYSTEMD_CREDENTIAL if self.credentials_directory else None
        return file if file and file.is_file() else None

    @property
    def api_url(self) -> str:
        """Return the API's URL for users, "" when it is not known: ``host`` is every address, no ``public_url``."""
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
    def local_url(self) -> str:
        """Return the URL at which this machine reaches the API."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host  # noqa: S104 (compared only)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def public_host(self) -> str | None:
        """Return the host of ``public_url`` if the previews' proxy serves the API there over HTTPS, else None.

        It does where visitors' HTTPS port is its own, and behind trusted proxies, which have the certificates.
        """
        url = urlsplit(self.public_url or "")
        host = (url.hostname or "").rstrip(".")
        if url.scheme != "https" or host == "localhost" or not is_host(host):
            return None
        if (port := self._https_port) is None:
            return host if self.preview.trusted_proxies else None
        return host if (url.port or STANDARD_PORTS["https"]) == port else None

    @property
    def _https_port(self) -> int | None:
        """Return the port at which visitors reach the previews' proxy over HTTPS, None without one."""
        if self.preview.tls_port is not None:
            return self.preview.public_tls_port or self.preview.tls_port
        return (self.preview.public_port or self.preview_port) if self.preview.certificate else None

    @property
    def has_wildcard(self) -> bool:
        """Return True if the service gets a wildcard certificate for the previews by itself."""
        return self.preview.tls_port is not None and self.acme.proves_by_dns and self.preview.certificate is None

    @property
    def preview_domain(self) -> PreviewDomain:
        """Return scheme, domain and port of preview URLs; the port is None when it is the scheme's default."""
        scheme = "https" if self.preview.certificate or self.has_wildcard else "http"
        tls_port = self.preview.public_tls_port or self.preview.tls_port
        port = (tls_port if scheme == "https" else None) or self.preview.public_port or self.preview_port
        return PreviewDomain(scheme, self.preview.domain, None if port == STANDARD_PORTS[scheme] else port)

    def to_prices(self) -> Prices:
        shown = bool(self.prices.model_fields_set) if self.money.shown is None else self.money.shown
        return Prices(**self.prices.model_dump(), shown=shown)

    def to_tenant_limits(self) -> TenantLimits:
        """Return the limits of tenants; each setting of a tenant's own overrides the one of all tenants."""
        common = self.tenant.model_dump()
        return TenantLimits(
            default=self.tenant.to_tenant_limit(),
            tenants={
                name: TenantSettings(**common | own.model_dump(exclude_unset=True)).to_tenant_limit()
                for name, own in self.tenants.items()
            },
            cpu_factor=self.capacity.cpu,
            memory_factor=self.capacity.memory,
        )

    def to_retention_policy(self) -> RetentionPolicy:
        names = (one.name for one in fields(RetentionPolicy))
        return RetentionPolicy(**{name: timedelta(days=getattr(self.retention, name)) for name in names})

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
            max_start_timeout=max(limits.start_timeout, limits.max_start_timeout),
            build_timeout=limits.build_timeout,
            release_timeout=limits.release_timeout,
            stop_grace=limits.stop_grace,
            exec_output=int(limits.exec_output * 1_000_000),
            kept_versions=self.retention.versions,
            freeze_after=self.idle.freeze_after,
            quiet_cpu=self.idle.cpu,
            qa_report=self.qa.report,
        )


STANDARD_PORTS = {"http": 80, "https": 443}
