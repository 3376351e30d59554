"""Previews: a builder's host name, where it leads in each state, and links that open it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from builderd.builders.model import Builder, Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.core.ids import BuilderId, TenantId, TokenId, is_id, secret_hash

#: A DNS label has 63 bytes at most (RFC 1035): 54 of the name, a hyphen, 8 of the id.
NAME_PART = 54
MAX_LABEL, MAX_HOST = 63, 253
ID_PART = 8

#: Lower-case host names: the only text that may go unescaped into the proxy's configuration, maps and pages.
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: In place of a preview's host: the service's own API and pages. No preview has it, since previews have a dot.
API = "api"


def is_host(text: str) -> bool:
    """Return True for a host that may go into the proxy's files as it is."""
    return _HOST.fullmatch(text) is not None


class RouteState(StrEnum):
    #: Requests go to the destination.
    OPEN = "open"
    #: The app is being created, started or restarted: 503 with a page that says so.
    STARTING = "starting"
    #: Another sandbox is about to take over: requests wait until then.
    PAUSED = "held"
    #: Frozen or stopped for idleness: a request wakes it, and waits for it.
    ASLEEP = "asleep"
    #: Stopped by a person: 503 with a page that says so.
    STOPPED = "stopped"
    #: Its spending cap stopped it: 503 with a page that says so.
    CAPPED = "capped"
    #: The app could not be started, or exited too often: 503 with a page that says so.
    FAILED = "failed"
    #: A one-time job is not a web app: 503 with a page that says so.
    JOB = "job"
    #: A worker has no port: 503 with a page that says so.
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Address:
    """IP address and port of an app, as the preview dials it."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Route:
    """Route of one host name.

    ``token_hash`` is the sha256 (64 hex) of the service token for a private preview, None for a public one.

    ``destination`` is set exactly when ``state`` is ``open``; ``h2c``: it is asked by HTTP/2 without TLS.
    ``builder_id`` lets the page of a crashed app link its logs, for requests with the service token only: its sha256 is
    ``token_hash`` or, for a public preview, ``owner_hash``. Paused requests are counted for ``tenant_id``.
    Raises ``ValueError`` for invalid values: a route becomes part of a proxy's configuration.
    """

    host: str
    state: RouteState
    destination: Address | None = None
    token_hash: str | None = None
    builder_id: BuilderId | None = None
    owner_hash: str | None = None
    h2c: bool = False
    tenant_id: TenantId | None = None

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError(f"not a lower-case host name: {self.host!r}")
        if (self.destination is not None) is not (self.state is RouteState.OPEN):
            raise ValueError(f"a route that is {self.state} has {self.destination or 'no destination'}")
        if self.h2c and self.destination is None:
            raise ValueError("a route without a destination has no protocol")
        if self.destination is not None:
            ipaddress.ip_address(self.destination.ip)
            _check_port(self.destination.port)
        if self.token_hash is not None and self.owner_hash is not None:
            raise ValueError("the owner of a private preview is known by its token_hash")
        for digest in (self.token_hash, self.owner_hash):
            if digest is not None and not _SHA256.fullmatch(digest):
                raise ValueError("a token's hash is 64 lower-case hex characters")
        for id_ in (self.builder_id, self.tenant_id):
            if id_ is not None and not is_id(id_):
                raise ValueError(f"not an id: {id_!r}")


@dataclass(frozen=True, slots=True)
class DomainAlias:
    """Custom domain: requests to ``host`` are those of ``preview_host``. ``certificate`` is the PEM of key and chain.

    Raises ``ValueError`` for a host that may not go into the proxy's files.
    """

    host: str
    preview_host: str
    certificate: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for host in (self.host, self.preview_host):
            if not _HOST.fullmatch(host):
                raise ValueError(f"not a lower-case host name: {host!r}")

    @property
    def fingerprint(self) -> str | None:
        return None if self.certificate is None else fingerprint(self.certificate)


@dataclass(frozen=True, slots=True)
class PreviewLink:
    """Link that opens a preview, or one of its other ports, until ``end`` (seconds since 1970).

    ``token_hash`` is the sha256 of its token. Raises ``ValueError`` for what may not go into the proxy's files.
    """

    token_hash: str
    host: str
    port: int | None
    end: int

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.token_hash) or not _HOST.fullmatch(self.host):
            raise ValueError(f"not a link: {self.token_hash!r} {self.host!r}")
        if self.port is not None:
            _check_port(self.port)

    @property
    def entry(self) -> str:
        """Return the value of the proxy's entry."""
        return f"{self.host}|{self.port or '-'}|{self.end}"


def port_host(host: str, port: int) -> str | None:
    """Return the host of another port of a preview; None where it would be too long for a host name."""
    other = f"{port}--{host}"
    return other if len(other.partition(".")[0]) <= MAX_LABEL and len(other) <= MAX_HOST else None


def fingerprint(certificate: str) -> str:
    """Return the sha256 of a PEM of key and chain, which differs between any two of them."""
    return sha256(certificate.encode()).hexdigest()


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"not a port: {port}")


#: Upper bounds, in ms, of the classes of response time; the last class, ``slower``, has none.
RESPONSE_BOUNDS = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000)
#: Counters of responses by their time, of ``PreviewActivity`` and ``domain.metrics.Usage``, in order of the bounds.
RESPONSE_TIMES = (*(f"within_{bound}_ms" for bound in RESPONSE_BOUNDS), "slower")

#: Classes of statuses of responses.
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")
#: Classes of statuses whose response times are counted on their own; those of the rest, 2xx, follow from all.
TIMED_CLASSES = ("3xx", "4xx", "5xx")


@dataclass(frozen=True, slots=True)
class PreviewActivity:
    """Counters of one host since the preview process started serving it; ``idle_seconds`` since its last request.

    ``answers_2xx`` and so on count responses by the class of the status. ``within_25_ms`` counts the app's responses
    that took at least the bound before (10 ms) and less than this one, until their head. ``class_times`` has these
    counts for each of ``TIMED_CLASSES``, one class after the other, or is empty.
    """

    requests: int
    bytes_in: int
    bytes_out: int
    open_connections: int
    failures: int
    idle_seconds: float
    answers_2xx: int = 0
    answers_3xx: int = 0
    answers_4xx: int = 0
    answers_5xx: int = 0
    within_5_ms: int = 0
    within_10_ms: int = 0
    within_25_ms: int = 0
    within_50_ms: int = 0
    within_100_ms: int = 0
    within_250_ms: int = 0
    within_500_ms: int = 0
    within_1000_ms: int = 0
    within_2500_ms: int = 0
    within_10000_ms: int = 0
    slower: int = 0
    class_times: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PreviewDomain:
    """Public URL parts of previews; ``port`` None: the scheme's default."""

    scheme: str
    domain: str
    port: int | None

    def url(self, host: str) -> str:
        """Return ``<scheme>://<host>[:port]/``."""
        return f"{self.scheme}://{host}{f':{self.port}' if self.port else ''}/"


def preview_host(name: str, builder_id: BuilderId, domain: str) -> str:
    """Return ``<name, cut to 54>-<first 8 hex of the id>.<domain>``, valid for every valid builder name."""
    label = name[:NAME_PART].rstrip("-")
    return f"{label}-{builder_id[:ID_PART]}.{domain}"


MIN_MINUTES, DEFAULT_MINUTES, MAX_MINUTES = 1, 60, 30 * 24 * 60
#: Most links of one builder that are valid at the same time.
MAX_LINKS = 20


@dataclass(frozen=True, slots=True)
class Link:
    """Link to a preview; ``port`` None: to the builder's own port.

    ``secret_hash`` is the sha256 of its token, which is not stored; ``created_by`` the actor. ``token_id`` is the API
    token that made it, with which it ends.
    """

    id: str
    tenant_id: TenantId
    builder_id: BuilderId
    secret_hash: str
    port: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime
    token_id: TokenId | None = None


#: States of the route of a builder that is stopped or has ended: a route in another one is opened or closed soon.
RESTING_STATES = frozenset(RouteState) - {RouteState.OPEN, RouteState.STARTING, RouteState.PAUSED}


class RoutedBuilder(NamedTuple):
    """Fields of a builder that its route follows from."""

    id: BuilderId
    tenant_id: TenantId
    host: str
    service_token: str
    job_type: JobType
    visibility: Visibility
    desired: Desired
    status: Status
    stop_kind: StopKind | None
    handover: Handover | None


def closed_route(builder: Builder | RoutedBuilder) -> Route:
    """Return the route of a builder without a reachable app."""
    if builder.job_type in (JobType.ONE_TIME, JobType.WORKER):
        return make_route(builder, RouteState.JOB if builder.job_type is JobType.ONE_TIME else RouteState.WORKER)
    if builder.desired is Desired.RUNNING:
        is_handing_over = builder.handover is not None and builder.status is Status.RUNNING
        waits = builder.stop_kind is StopKind.IDLE or is_handing_over
        return make_route(builder, RouteState.PAUSED if waits else RouteState.STARTING)
    if builder.status is Status.FAILED:
        return make_route(builder, RouteState.FAILED)
    states = {StopKind.IDLE: RouteState.ASLEEP, StopKind.CAP: RouteState.CAPPED}
    return make_route(builder, states.get(builder.stop_kind or StopKind.PERSON, RouteState.STOPPED))


def make_route(
    builder: Builder | RoutedBuilder, state: RouteState, destination: Address | None = None, *, h2c: bool = False
) -> Route:
    token = secret_hash(builder.service_token)
    private = builder.visibility is Visibility.PRIVATE
    return Route(
        host=builder.host,
        state=state,
        destination=destination,
        h2c=h2c,
        token_hash=token if private else None,
        builder_id=builder.id,
        owner_hash=None if private else token,
        tenant_id=builder.tenant_id,
    )
