"""The sections of the settings: each a table of ``builderd.toml`` with its fields, defaults and bounds."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyAddress,
    SecretStr,
    model_validator,
)
from pydantic_settings import NoDecode

from builderd.backups.model import BackupRules, Retention
from builderd.core.resources import Limit
from builderd.tokens.limits import TenantLimit
from builderd.versions.model import Isolation

Port = Annotated[int, Field(ge=1, le=65535)]
Price = Annotated[Decimal, Field(ge=0)]
Share = Annotated[Decimal, Field(ge=0, le=1)]
#: Leaves room for the label of a builder in the 253 characters of a host name (RFC 1035).
Domain = Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$", max_length=189)]


def not_empty(value: Any) -> Any:
    """Reject an empty path, which would mean the working directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty: name a folder, or unset it")
    return value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


#: An HTTP URL without user and password.
SOURCE = re.compile(r"https?://[^\s/?#\\@]+(?:[/?#]\S*)?")


def _no_secret(url: str) -> str:
    if not SOURCE.fullmatch(url):
        raise ValueError(
            "must be http://host/… or https://host/… without a user and a password, since code of tenants can read "
            "it: let a proxy on this host add the credentials, and set the proxy's URL here"
        )
    return url


#: The URL of a package index, visible to all builds.
PackageSource = Annotated[str, AfterValidator(_no_secret)]

#: A list in TOML; separated by commas in a variable.
Networks = Annotated[tuple[IPv4Network, ...], NoDecode, BeforeValidator(_split)]
AnyNetworks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]


def _resolver(text: str) -> str:
    address, _, port = text.rpartition(":")
    ip_address(address.strip("[]"))
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text}: must be an address and a port, such as 192.0.2.53:53 or [2001:db8::53]:53")
    return text


#: ``address:port`` of a name server.
Resolver = Annotated[str, AfterValidator(_resolver)]
Resolvers = Annotated[tuple[Resolver, ...], NoDecode, BeforeValidator(_split)]
Addresses = Annotated[tuple[IPvAnyAddress, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]

#: A name that Incus takes for projects, pools and networks; a network's is that of a link too.
IncusName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=63)]


class Section(BaseModel):
    """The base of all sections: frozen, unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PriceSettings(Section):
    """Prices an hour of one vCPU, one GB of memory and one GB of disk, and the shares that frozen builders pay."""

    currency: str = "EUR"
    cpu: Price = Decimal("0.12")
    memory: Price = Decimal("0.06")
    disk: Price = Decimal("0.0055")
    frozen_cpu: Share = Decimal(0)
    frozen_memory: Share = Decimal(1)


class MoneySettings(Section):
    """Costs on pages and in the command line: shown, not shown, or None: once a price is set."""

    shown: bool | None = None


class LimitSettings(Section):
    """Limits of every builder: bounds of ``resources`` in vCPU and GB; times in seconds; sizes in MB (10^6 bytes).

    ``stored_code``: of the code of all builders together, where a cluster keeps it in its database.
    ``code_share``: part of its own code and the free space together that one of several tenants may have.
    """

    cpu: float = Field(default=8, ge=0.25)
    memory: float = Field(default=16, ge=0.125)
    disk: float = Field(default=100, ge=1)
    isolation: Isolation = Isolation.STANDARD
    start_timeout: float = Field(default=60, gt=0)
    max_start_timeout: float = Field(default=600, gt=0)
    build_timeout: float = Field(default=900, gt=0)
    release_timeout: float = Field(default=120, gt=0)
    stop_grace: float = Field(default=10, ge=0)
    exec_output: float = Field(default=10, gt=0)
    log: float = Field(default=10, gt=0)
    upload: float = Field(default=1000, gt=0)
    uploads_per_tenant: float = Field(default=5000, gt=0)
    code: float = Field(default=1000, gt=0)
    stored_code: float = Field(default=100_000, gt=0)
    code_share: float = Field(default=0.5, gt=0, le=1)
    code_files: int = Field(default=100_000, gt=0)


class IdleSettings(Section):
    """Freezing of builders with an auto-stop interval after ``freeze_after`` seconds without use (0: never).

    ``cpu``: apps that use more than this share of one CPU are not frozen.
    """

    freeze_after: float = Field(default=60, ge=0)
    cpu: float = Field(default=0.02, ge=0)


class PreviewSettings(Section):
    """The proxy of previews. ``public_port``: the port for visitors, if something forwards it to ``preview_port``.

    ``tls_port``: a port that speaks TLS, with certificates of custom domains; ``preview_port`` then speaks plain HTTP.
    ``public_tls_port``: the port for visitors, if something forwards it to ``tls_port``.

    ``address_connections``: concurrent connections and HTTP/2 requests of one visitor's address; 0: no limit.
    """

    domain: Domain = "localhost"
    public_port: Port | None = None
    tls_port: Port | None = None
    public_tls_port: Port | None = None
    certificate: Path | None = None
    trusted_proxies: Networks = ()
    address_connections: int = Field(default=1_000, ge=0)


def _tsig_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"(?:hmac-[a-z0-9-]+:)?[^:\s]+:[A-Za-z0-9+/]+=*", key.get_secret_value()):
        raise ValueError("must be [algorithm:]name:secret, with the secret in base64, as for nsupdate -y")
    return key


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path}: must be the absolute path of a program")
    return path


class DnsUpdateSettings(Section):
    """Dynamic updates (RFC 2136) of the zone of ``preview.domain``: ``address:port`` of its primary server, and a key.

    ``key``: ``[algorithm:]name:secret``, as for ``nsupdate -y``; the algorithm is hmac-sha256 unless given.
    """

    server: Resolver
    key: Annotated[SecretStr, AfterValidator(_tsig_key)]


class AcmeSettings(Section):
    """Custom domains and the certificate authority for them, which is asked only if ``preview.tls_port`` is set.

    ``roots``: PEM file for an authority of one's own. ``resolvers``: name servers for the service's own check.
    ``eab_key_id`` and ``eab_hmac_key``: external account binding, where the authority wants it. ``addresses``: where
    domains must lead; by default the machine's. ``dns`` or ``hook``: updates, or a program of one's own with
    ``hook_timeout`` seconds for each call, that prove ``preview.domain``, for a wildcard certificate of all previews.
    ``domains``: the most of one builder.
    """

    directory: Annotated[str, Field(pattern=r"^https://\S+$")] = "https://acme-v02.api.letsencrypt.org/directory"
    contact: Annotated[str, Field(pattern=r"^[^\s@,?]+@[^\s@,?]+$")] | None = None
    roots: Path | None = None
    resolvers: Resolvers = ()
    eab_key_id: str | None = None
    eab_hmac_key: SecretStr | None = None
    addresses: Addresses = ()
    dns: DnsUpdateSettings | None = None
    hook: Annotated[Path, AfterValidator(_absolute)] | None = None
    hook_timeout: float = Field(default=120, gt=0, le=3_600)
    domains: int = Field(default=20, ge=0)

    @model_validator(mode="after")
    def _whole_binding(self) -> Self:
        if (self.eab_key_id is None) is not (self.eab_hmac_key is None):
            raise ValueError("eab_key_id and eab_hmac_key go together: set both, or none")
        return self

    @model_validator(mode="after")
    def _one_way_to_prove(self) -> Self:
        if self.dns is not None and self.hook is not None:
            raise ValueError("dns and hook are two ways to the same record: set one of them")
        return self

    @property
    def proves_by_dns(self) -> bool:
        return self.dns is not None or self.hook is not None


class OpenIdSettings(Section):
    """Sign-in to the web pages by an OpenID provider; off without ``issuer``.

    ``client_secret``: none for a public client. ``scope``: asked of the provider. ``tenant_claim`` and ``scope_claim``
    of the ID token say whose tenant it is and what it may. ``name``: of the button.
    """

    issuer: Annotated[str, Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost)[:/])\S+$")] | None = None
    client_id: Annotated[str, Field(min_length=1)] | None = None
    client_secret: SecretStr | None = None
    scope: Annotated[str, Field(pattern=r"^(\S+ )*openid( \S+)*$")] = "openid"
    tenant_claim: Annotated[str, Field(min_length=1)] = "builderd_tenant"
    scope_claim: Annotated[str, Field(min_length=1)] = "builderd_scope"
    name: Annotated[str, Field(min_length=1, max_length=60)] = "single sign-on"

    @model_validator(mode="after")
    def _whole_client(self) -> Self:
        if (self.issuer is None) is not (self.client_id is None):
            raise ValueError("issuer and client_id go together: set both, or none")
        return self


class EgressSettings(Section):
    """Networks that sandboxes may (``allow``) or must not (``deny``) reach, in addition to the default policy."""

    allow: Networks = ()
    deny: Networks = ()


class StoreSettings(Section):
    """The store of disks: a block ``device``, or a sparse file of at most ``size`` GB in the data directory.

    ``floor`` GB of the host always stay free. The sum of disk sizes may be ``overcommit`` times the space.
    """

    device: Path | None = None
    size: float | None = Field(default=None, gt=0)
    floor: float = Field(default=2, ge=0)
    overcommit: float = Field(default=4, ge=1)


class IncusSettings(Section):
    """Incus, for ``engine = "incus"``: its unix ``socket``, or the ``url`` of any member of the cluster.

    ``certificate`` and ``key``: of the client, for ``url``; ``server_certificate``: the one that the cluster shows.
    ``project`` and ``network`` are made if missing, the storage ``pool`` must exist. ``subnet``: of all apps'
    addresses, the same on every member. ``recover``: ``wait`` for a lost member to return, or bring the newest
    ``backup`` of its builders back on another once it is away for ``recover_after`` seconds.
    """

    socket: Path = Path("/var/lib/incus/unix.socket")
    url: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9.:\[\]-]+:[0-9]+$")] | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_certificate: Path | None = None
    project: IncusName = "builderd"
    pool: IncusName = "default"
    network: Annotated[IncusName, Field(max_length=15)] = "builderd"
    subnet: IPv4Network = IPv4Network("10.99.0.0/16")
    recover: Literal["wait", "backup"] = "wait"
    recover_after: float = Field(default=60, ge=0)

    @model_validator(mode="after")
    def _whole_client(self) -> Self:
        parts = (self.certificate, self.key, self.server_certificate)
        if self.url and None in parts:
            raise ValueError("url needs certificate, key and server_certificate: set all of them, or use socket")
        if not self.url and any(parts):
            raise ValueError("certificate, key and server_certificate go with url: set it too, or leave them out")
        if self.subnet.prefixlen > 24:
            raise ValueError(f"subnet {self.subnet} is too small for apps: give a /24 or larger")
        return self


class SshSettings(Section):
    """The SSH gateway: ``port`` to listen on (0: off); the API shows ``public_host`` and ``public_port`` instead."""

    port: int = Field(default=8022, ge=0, le=65535)
    public_host: str | None = None
    public_port: Port | None = None


class VaultSettings(Section):
    """The key of stored secrets: ``key`` itself, or else ``key_file``.

    ``key_file`` is ``vault.key`` in the data directory unless set, and generated when first needed.
    ``previous_keys`` open secrets that were sealed with them; they go with ``key``: a file has its own previous keys.
    All are 32 bytes in base64.
    """

    key: SecretStr | None = None
    previous_keys: Secrets = ()
    key_file: Path | None = None

    @model_validator(mode="after")
    def _key_of_its_own(self) -> Self:
        if self.previous_keys and self.key is None:
            raise ValueError("previous_keys go with key: set the current key too, or leave them out for a key file")
        return self


class BackupSettings(Section):
    """Backups. ``repository``: a folder or a restic back end (``sftp:…``, ``rest:…``, ``s3:…``), one below it a tenant.

    ``environment`` has the back end's variables; ``ssh_key`` and ``ssh_hosts`` are files for ``sftp:``. ``keep_…``
    count the hours, days and weeks whose newest backup is kept. ``drill_hours``: between test restores, 0: never.
    ``tenant_share``: part of the space for repositories in a folder that one tenant's may take.
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
    tenant_share: float = Field(default=0.5, gt=0, le=1)

    def to_rules(self) -> BackupRules:
        return BackupRules(
            retention=Retention(self.keep_hourly, self.keep_daily, self.keep_weekly),
            keep_deleted=timedelta(days=self.keep_deleted_days),
            drill_every=timedelta(hours=self.drill_hours),
            check_every=timedelta(hours=self.check_hours),
            check_percent=self.check_percent,
        )


class TenantSettings(Section):
    """Quotas of a tenant and its monthly spending caps; None: no limit.

    ``cpu`` and ``memory`` are sums over running builders, ``disk`` over all. ``layers``: GB of installed dependencies;
    None: half of the store. ``domains``: custom domains of all its builders.
    """

    builders: int | None = Field(default=None, ge=0)
    running_builders: int | None = Field(default=None, ge=0)
    cpu: float | None = Field(default=None, ge=0)
    memory: float | None = Field(default=None, ge=0)
    disk: float | None = Field(default=None, ge=0)
    layers: float | None = Field(default=None, ge=0)
    domains: int | None = Field(default=None, ge=0)
    monthly_cap: Price | None = None
    builder_monthly_cap: Price | None = None

    def to_tenant_limit(self) -> TenantLimit:
        quota = Limit(self.builders, self.running_builders, self.cpu, self.memory, self.disk)
        return TenantLimit(quota, self.monthly_cap, self.builder_monthly_cap, self.layers, self.domains)


class RateSettings(Section):
    """Limits a minute: ``requests`` of one token, ``failures`` (wrong tokens) of one address; 0: no limit."""

    requests: int = Field(default=6000, ge=0)
    failures: int = Field(default=60, ge=0)


class CapacitySettings(Section):
    """Overcommit: running builders may together have this many times the machine's CPU and memory."""

    cpu: float = Field(default=32, gt=0)
    memory: float = Field(default=16, gt=0)


class ReviewSettings(Section):
    """The review gate. ``policy``: a YAML file that replaces the default policy.

    ``model_url`` and ``model``: an OpenAI-compatible endpoint and its model, which may hold versions for approval;
    off unless both are set. ``model_key`` is sent to it as a bearer token. ``model_timeout`` in seconds.
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
    """QA. ``report``: test a copy of each new version after its gate. ``chromium``: path of the browser for it."""

    report: bool = True
    chromium: Path = Path("/usr/lib/chromium/chromium")


class WebhookSettings(Section):
    """Private networks to which webhooks may be sent; public addresses are always allowed."""

    allow: AnyNetworks = ()


class RetentionSettings(Section):
    """Retention in days; ``versions`` is a number of versions.

    ``layers``: unused ones, since they were last requested. ``events``: also run records, build logs and SSH grants.
    ``deliveries``: of webhooks. ``failed_disks``: of builders that failed and never were up.
    """

    layers: float = Field(default=30, ge=0.05)
    events: float = Field(default=90, ge=7)
    deliveries: float = Field(default=30, ge=1)
    failed_disks: float = Field(default=1, ge=0.001)
    versions: int = Field(default=10, ge=1)
