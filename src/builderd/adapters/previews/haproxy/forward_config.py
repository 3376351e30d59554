"""Configuration of a standby's proxy, which passes its ports on to the service that works. Pure.

Previews and SSH pass byte by byte, so that TLS ends at the service that works. Requests to the API are parsed: this
service answers those about its own health, and all while no other one works. It serves plain visits itself of those
apps that its list of routes has, while it may use it (``listed_config``). A connection that finds the other service
gone is tried again each second, at the address that the runtime API has set by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

from builderd.adapters.previews.haproxy import answers, listed_config, pages
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.config import (
    DESCRIPTION,
    READS_PAGES,
    SEND_BUFFER,
    Configuration,
    Host,
    admission,
    listen,
    visitors,
)
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.receiving import SECRET_FIELD, SERVICE_FIELD, PassedOn
from builderd.adapters.previews.haproxy.section import quoted, section

#: Times that a connection is tried, a second apart where it is refused, two where nothing answers.
TRIES = 9
#: The one server of each backend.
SERVER = "worker"
#: Paths that this service answers itself.
OWN_PATHS = "/healthz /readyz /metrics /api/v1/healthz /api/v1/readyz"
#: Part of all connections that each port may have where it serves the list: a visitor's has another one behind it, and
#: at the limit of all that one would wait for ever for those in front.
PARTS = {PassedOn.HTTP: 3, PassedOn.API: 4, PassedOn.SSH: 12}
#: ``set server`` fills it in.
_NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class ForwardOptions:
    """Ports of a standby: those of ``proxy``, the API's and the SSH gateway's (None: off). ``secret``: hex digits."""

    proxy: ProxyOptions
    api_port: int
    ssh_port: int | None
    secret: str = field(repr=False)

    @property
    def services(self) -> tuple[PassedOn, ...]:
        https = (PassedOn.HTTPS,) if self.proxy.tls_port else ()
        return (PassedOn.API, PassedOn.HTTP, *https, *((PassedOn.SSH,) if self.ssh_port else ()))

    @property
    def backends(self) -> Mapping[str, PassedOn]:
        """Return the backends that lead to the service that works, and what each passes on."""
        more = dict.fromkeys(listed_config.PASSED, PassedOn.HTTP) if self.serves_list else {}
        return {backend_name(one): one for one in self.services} | more

    @property
    def serves_list(self) -> bool:
        return listed_config.is_served(self.proxy)


def backend_name(service: PassedOn) -> str:
    return f"to_{service}"


def render(options: ForwardOptions, files: ProxyFiles, host: Host) -> Configuration:
    sections = (
        _defaults(options),
        _api(options, host),
        _own(files, chrooted=host.user is not None),
        *(_stream(options, host, one) for one in options.services if one is not PassedOn.API),
        *(_backend(options, files, host, name) for name in options.backends),
        *(_nobody(files, form) for form in Form),
        visitors(),
        *(listed_config.sections(options.proxy, files, _part(host, PassedOn.HTTP)) if options.serves_list else ()),
    )
    rest = "\n".join(sections)
    content = (_global(files, host, ""), rest, *pages.documents().values())
    digest = sha256("\0".join(content).encode()).hexdigest()[:16]
    return Configuration(f"{_global(files, host, digest)}\n{rest}", digest)


def _global(files: ProxyFiles, host: Host, digest: str) -> str:
    return section(
        "global",
        f"description {quoted(f'{DESCRIPTION} {digest}')}",
        f"maxconn {host.max_connections}",
        f"tune.sndbuf.client {SEND_BUFFER}",
        "noreuseport",
        f"user {host.user}\nchroot {quoted(files.jail)}" if host.user else "",
        f"stats socket {quoted(files.admin_socket)} mode 600 level admin",
        "stats timeout 60s",
        "hard-stop-after 3600s",
    )


def _defaults(options: ForwardOptions) -> str:
    times = options.proxy.timeouts
    return section(
        "defaults base",
        f"""
        timeout connect {times.connect}s
        timeout client-hs {times.handshake}s
        timeout http-request {times.request}s
        timeout http-keep-alive {times.keep_alive}s
        timeout client {times.tunnel}s
        timeout client-fin 30s
        timeout server {times.tunnel}s
        timeout server-fin 30s
        timeout tunnel {times.tunnel}s
        retries {TRIES}
        # Each try asks for the server's address anew.
        option redispatch 1
        """,
    )


def _api(options: ForwardOptions, host: Host) -> str:
    return section(
        "frontend api from base",
        f"""
        mode http
        option http-no-delay
        bind {quoted(listen(options.proxy.host, options.api_port))} proto h1
        {_admission(options, host, PassedOn.API)}
        use_backend own if {{ path {OWN_PATHS} }}
        use_backend own if {{ nbsrv({backend_name(PassedOn.API)}) eq 0 }}
        default_backend {backend_name(PassedOn.API)}
        """,
    )


def _admission(options: ForwardOptions, host: Host, service: PassedOn) -> str:
    """Return the limits of a port: of all its connections, and of those of one address."""
    if not options.serves_list:
        return admission(options.proxy, host)
    part = _part(host, service)
    return f"maxconn {part.max_connections}\n{admission(options.proxy, part)}"


def _part(host: Host, service: PassedOn) -> Host:
    return replace(host, max_connections=max(host.max_connections // PARTS[service], 1))


def _own(files: ProxyFiles, *, chrooted: bool) -> str:
    """Return the backend for this service's own answers."""
    socket = f"/{files.api_socket.name}" if chrooted else str(files.api_socket)
    return section(
        "backend own from base",
        f"""
        mode http
        {answers.standby_errors(files)}
        # Where this service was killed, a load balancer learns it at once.
        retries 0
        option http-server-close
        http-reuse never
        server service {quoted(f"unix@{socket}")} send-proxy-v2
        """,
    )


def _stream(options: ForwardOptions, host: Host, service: PassedOn) -> str:
    """Return the frontend of a port that is passed on byte by byte."""
    port = {
        PassedOn.HTTP: options.proxy.port,
        PassedOn.HTTPS: options.proxy.tls_port,
        PassedOn.SSH: options.ssh_port,
    }[service]
    assert port is not None, "only ports that are set are served"
    nobody = f"{{ nbsrv({backend_name(service)}) eq 0 }}"
    if service is PassedOn.HTTP and not options.proxy.speaks_tls_only:
        stays = listed_config.STAYS if options.serves_list else ""
        end = f"""
            tcp-request inspect-delay {options.proxy.timeouts.request}s
            {listed_config.choice() if stays else ""}
            tcp-request content switch-mode http if {nobody}{f" !{stays}" if stays else ""}
            {f"use_backend {listed_config.BACKEND} if {stays}" if stays else ""}
            use_backend nobody_page if {nobody} {READS_PAGES}
            use_backend nobody_envelope if {nobody}
            """
    else:
        end = f"tcp-request content reject if {nobody}"
    return section(
        f"frontend {service} from base",
        f"""
        mode tcp
        bind {quoted(listen(options.proxy.host, port))}
        {_admission(options, host, service)}
        {end}
        default_backend {backend_name(service)}
        """,
    )


def _backend(options: ForwardOptions, files: ProxyFiles, host: Host, name: str) -> str:
    """Return a backend that leads to the service that works; the runtime API sets its address and state.

    A visitor's connection that waits for it goes on to the list of routes, once that is used while no service works.
    """
    service = options.backends[name]
    has_list = name == backend_name(PassedOn.HTTP) and options.serves_list
    fields = {SECRET_FIELD: options.secret, SERVICE_FIELD: str(service)}
    header = " ".join(f'set-proxy-v2-tlv-fmt({key}) "%[str({value})]"' for key, value in fields.items())
    return section(
        f"backend {name} from base",
        _request_mode(_errors(files, name)),
        # Each connection is one client's, whom its header names.
        "option http-server-close" if service is PassedOn.API else "",
        f"server {SERVER} {_NOWHERE} send-proxy-v2 {header} disabled",
        f"{listed_config.server(files, chrooted=host.user is not None)} disabled" if has_list else "",
    )


def _errors(files: ProxyFiles, name: str) -> str:
    """Return the error answers of a backend that parses requests, "" for one that does not."""
    if name == backend_name(PassedOn.API):
        return answers.standby_errors(files)
    form = listed_config.PASSED.get(name)
    return answers.visit_errors(files, form) if form is not None else ""


def _request_mode(errors: str) -> str:
    if not errors:
        return "mode tcp"
    return f"""
        mode http
        option http-no-delay
        option abortonclose
        http-reuse never
        {errors}
        """


def _nobody(files: ProxyFiles, form: Form) -> str:
    """Return the backend of visitors while no service works."""
    return section(
        f"backend nobody_{form} from base",
        f"""
        mode http
        {answers.answer(files, pages.NO_SERVICE, form)}
        """,
    )
