"""What the operator may set of the proxy, and where its files lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

_API_URL = re.compile(r"(?:https?://[A-Za-z0-9.:\[\]-]+)?")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. ``client`` and ``server`` bound a silence in mid-request, as of a quiet event stream.

    ``tunnel`` bounds the silence of a WebSocket, ``drain`` how long a replaced worker serves what is open.
    """

    connect: int = 2
    request: int = 15
    keep_alive: int = 75
    client: int = 3600
    server: int = 3600
    tunnel: int = 86_400
    drain: int = 3600


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """``certificate`` is a PEM file of key and chain; with it, the port speaks TLS only.

    ``trusted_proxies`` are networks of proxies in front whose ``X-Forwarded-For`` and ``-Proto`` are believed.
    ``address_connections`` is how many connections and HTTP/2 requests one visitor's address may hold at a time, 0 any.
    ``threads`` None means one per CPU. ``api_url`` (``https://host[:port]``) is where a page sends the app's owner for
    its logs. ``program`` is a name on the PATH, or a path. Raises ``ValueError`` for what cannot be written down.
    """

    host: str = "127.0.0.1"
    port: int = 8081
    certificate: Path | None = None
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    threads: int | None = None
    max_connections: int = 20_000
    address_connections: int = 1_000
    timeouts: Timeouts = field(default_factory=Timeouts)
    api_url: str = ""
    program: str = "haproxy"

    def __post_init__(self) -> None:
        if not _API_URL.fullmatch(self.api_url):
            raise ValueError(f"not the address of an API: {self.api_url!r}")


@dataclass(frozen=True, slots=True)
class ProxyFiles:
    """All that the proxy has of its own is in one directory, which nobody else may enter."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "haproxy.cfg"

    @property
    def routes(self) -> Path:
        return self.directory / "routes.map"

    @property
    def pages(self) -> Path:
        return self.directory / "pages"

    @property
    def admin_socket(self) -> Path:
        return self.directory / "admin.sock"

    @property
    def master_socket(self) -> Path:
        return self.directory / "master.sock"

    @property
    def pid(self) -> Path:
        return self.directory / "haproxy.pid"

    @property
    def guard(self) -> Path:
        return self.directory / "guard.pid"

    @property
    def turn(self) -> Path:
        """Whoever starts a proxy has it locked."""
        return self.directory / "turn.lock"

    @property
    def jail(self) -> Path:
        """The directory that a worker started by root is locked into: there is nothing in it but one socket."""
        return self.directory / "empty"

    @property
    def wake_socket(self) -> Path:
        return self.jail / "wake.sock"

    @property
    def hold(self) -> Path:
        return self.directory / "hold.lua"
