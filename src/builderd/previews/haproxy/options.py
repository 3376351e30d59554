"""The proxy's settings and the paths of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

_API_URL = re.compile(r"(?:https?://[A-Za-z0-9.:\[\]-]+)?")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds. ``connect``: an app that is frozen, or whose listen backlog is full, accepts no connection;
    the kernel tries again after 1, 3, 7 and 15 s. ``handshake``: a whole TLS handshake.

    ``client`` and ``server``: silence within a request, such as a quiet event stream.

    ``tunnel``: silence of a WebSocket; ``drain``: time that a reload leaves the replaced worker for open requests.
    """

    connect: int = 30
    handshake: int = 10
    request: int = 15
    keep_alive: int = 75
    client: int = 3600
    server: int = 3600
    tunnel: int = 86_400
    drain: int = 5


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """Settings of the proxy. ``certificate`` is a PEM file of key and chain; with it, the port speaks TLS only.

    With ``tls_port``, that port speaks TLS and ``port`` plain HTTP: ``certificate``, or a self-signed one, is for hosts
    without a certificate of their own. ``wildcard``: one for all previews is put later (``put_wildcard``); previews are
    then redirected to HTTPS, as with ``certificate``. Visitors are redirected to ``public_tls_port``, by default
    ``tls_port``.

    ``trusted_proxies`` are networks of proxies in front whose ``X-Forwarded-For`` and ``-Proto`` are trusted.
    ``address_connections`` is how many connections and HTTP/2 requests one visitor's address may have at a time, 0 any.
    ``serves_api``: a domain put for ``domain.previews.API`` leads to the API at ``ProxyFiles.api_socket``, over HTTPS
    alone. ``api_has_certificate``: ``certificate`` is for its host too. ``hsts``: seconds for which browsers then
    reach that host by nothing else; 0: they are not told to.
    ``threads`` None means one per CPU. ``api_url`` (``https://host[:port]``) is the API that a page names to the
    app's owner for its logs. ``program`` is a name on the PATH, or a path.
    Raises ``ValueError`` for a bad URL.
    """

    host: str = "127.0.0.1"
    port: int = 8081
    certificate: Path | None = None
    tls_port: int | None = None
    public_tls_port: int | None = None
    wildcard: bool = False
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    threads: int | None = None
    max_connections: int = 20_000
    address_connections: int = 1_000
    timeouts: Timeouts = field(default_factory=Timeouts)
    api_url: str = ""
    serves_api: bool = False
    api_has_certificate: bool = False
    hsts: int = 0
    program: str = "haproxy"

    def __post_init__(self) -> None:
        if not _API_URL.fullmatch(self.api_url):
            raise ValueError(f"not the address of an API: {self.api_url!r}")

    @property
    def speaks_tls_only(self) -> bool:
        return self.certificate is not None and self.tls_port is None

    @property
    def has_both_schemes(self) -> bool:
        """True if a visitor may come over HTTP or HTTPS, so that each request has to tell."""
        return bool(self.trusted_proxies) or self.tls_port is not None


class ProxyFiles:
    """Paths of the proxy's files, all in one directory that no other user may enter."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "haproxy.cfg"
        self.routes = directory / "routes.map"
        self.domains = directory / "domains.map"
        self.links = directory / "links.map"
        self.certificates = directory / "certificates"
        self.certificate_list = directory / "certificates.list"
        #: The self-signed certificate for hosts without one of their own.
        self.default_certificate = self.certificates / "default.pem"
        self.pages = directory / "pages"
        self.admin_socket = directory / "admin.sock"
        self.master_socket = directory / "master.sock"
        self.pid = directory / "haproxy.pid"
        self.fence_pid = directory / "fence.pid"
        #: Seconds since the boot at which the fence ends the proxy; without the file it does not.
        self.deadline = directory / "deadline"
        #: The directory that a worker started by root uses as its root (chroot); it contains two sockets.
        self.jail = directory / "empty"
        self.wake_socket = self.jail / "wake.sock"
        #: The socket on which the service takes requests for its API, behind a PROXY header.
        self.api_socket = self.jail / "api.sock"
        self.pause_script = directory / "pause.lua"
