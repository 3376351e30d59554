"""The way in from the web: a builder's host name, and what its route says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from builderd.domain.ids import BuilderId

#: A DNS label has 63 bytes at most (RFC 1035): 54 of the name, a hyphen, 8 of the id.
NAME_PART = 54
ID_PART = 8


class RouteState(StrEnum):
    #: Requests go to the destination.
    OPEN = "open"
    #: The app is being created, started or restarted: 503 with a page that says so.
    STARTING = "starting"
    #: Somebody or something stopped it: 503 with a page that says why.
    STOPPED = "stopped"
    #: The app could not be started, or exited too often: 503 with a page that says so.
    FAILED = "failed"
    #: A one-time job is not a web app: 503 with a page that says so.
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an app listens, as the preview can dial it: an IP address and a port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Route:
    """``token_hash`` is the sha256 of the service token for a private preview, None for a public one.

    ``destination`` is set exactly when ``state`` is ``open``.
    """

    host: str
    state: RouteState
    destination: Address | None = None
    token_hash: str | None = None


@dataclass(frozen=True, slots=True)
class PreviewActivity:
    """Counters of one host since the preview process knows it; ``idle_seconds`` since its last request."""

    requests: int
    bytes_in: int
    bytes_out: int
    open_connections: int
    failures: int
    requests_per_minute: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class PreviewDomain:
    """Where previews live, as a visitor types it: ``port`` None means the scheme's own."""

    scheme: str
    domain: str
    port: int | None

    def url(self, host: str) -> str:
        """``<scheme>://<host>[:port]/``"""
        return f"{self.scheme}://{host}{f':{self.port}' if self.port else ''}/"


def preview_host(name: str, builder_id: BuilderId, domain: str) -> str:
    """``<name, cut to 54>-<first 8 hex of the id>.<domain>``, a valid host name for every valid builder name."""
    label = name[:NAME_PART].rstrip("-")
    return f"{label}-{builder_id[:ID_PART]}.{domain}"
