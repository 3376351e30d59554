"""Configuration by which a standby serves visits of listed routes itself. Pure.

Its proxy has a list of routes to running, public apps at all times (``domain.route_list``), and uses it only up to a
time that the service moves: by this machine's clock, and for some seconds from then by the proxy's own, which nobody
sets. So a proxy whose service was killed, or that finishes what is open, ends its use by itself. There are two such
times: one for visits that are led directly, beside the service that works, and one for those while no service works.

Visits that a working proxy would send on its fast path go to the app; all others to the service that works. While there
is none, they get 503 with ``Retry-After``.
"""

from __future__ import annotations

from builderd.adapters.previews.haproxy import answers, app_connections, counting, receiving
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.config import (
    PLAIN_VISIT,
    READS_PAGES,
    Host,
    answer_rules,
    asked_host,
    defaults,
    forward_rules,
    plain_visit,
    sender,
    share,
)
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section
from builderd.domain.route_list import DIRECT_PROXY_SECONDS, PROXY_SECONDS

#: Server of the backend of visitors that leads to these sections, and the backend that leads to nothing else.
SERVER, BACKEND = "listed", "by_list"
#: Tables whose one entry has the time, in seconds since 1970, up to which the list may be used: while no service works,
#: and beside the one that works.
TABLE, DIRECT_TABLE, KEY = "list_until", "direct_until", "list"
#: Backends that pass on the requests of such connections which are no visits of the list.
PASSED = {f"to_http_request_{form}": form for form in Form}
#: Servers by which visits go to apps.
APPS = app_connections.servers("listed")


def is_served(options: ProxyOptions) -> bool:
    """Return True where visits come as plain HTTP: TLS ends at the service that works, which has the certificates."""
    return options.certificate is None and options.tls_port is None


def server(files: ProxyFiles, *, chrooted: bool) -> str:
    """Return the line for the server that leads to these sections."""
    path = f"/{files.http_socket.name}" if chrooted else str(files.http_socket)
    return f"server {SERVER} {quoted(f'unix@{path}')} send-proxy-v2"


def choice() -> str:
    """Return the rules of the visitors' port: a connection that begins with a request of HTTP/1 stays here.

    Its requests may be for any host, now or later. Only while visits are led directly it is waited for the first one;
    all other connections pass byte by byte, and so do WebSockets.
    """
    return f"""
        {_time_left("tcp-request content", DIRECT_TABLE, "direct")}
        acl direct var(txn.direct) -m int gt 0
        acl request req.hdr(host) -m found
        acl upgrade req.hdr(upgrade) -m found
        tcp-request content set-var(txn.stays) bool(true) if direct request !upgrade
        """


#: Condition on such a connection, behind ``choice``.
STAYS = "{ var(txn.stays) -m bool }"


def _time_left(rule: str, table: str, name: str) -> str:
    """Return the rules that set a variable to the seconds for which a table lets the list be used."""
    return f"""
        {rule} set-var(txn.{name}_until) str({KEY}),table_gpt0({table})
        {rule} set-var(txn.{name}) date,neg,add(txn.{name}_until)
        """


def sections(options: ProxyOptions, files: ProxyFiles, host: Host) -> tuple[str, ...]:
    """Return the sections. Backends ``nobody_page`` and ``nobody_envelope`` answer what nobody serves."""
    networks = " ".join(map(str, options.trusted_proxies))
    page, envelope = PASSED
    nobody, is_plain = f"{{ nbsrv({page}) eq 0 }}", "{ var(txn.plain) -m bool }"
    return (
        section(f"backend {BACKEND} from base", "mode tcp", server(files, chrooted=host.user is not None)),
        defaults(options, "visits"),
        section(
            "frontend listed from visits",
            f"""
            {receiving.bind(files.http_socket, host.user, "proto h1")}
            {receiving.from_proxy(networks) if networks else ""}
            {asked_host()}
            {_time_left("http-request", TABLE, "left")}
            {_time_left("http-request", DIRECT_TABLE, "direct")}
            acl allowed var(txn.left) -m int gt 0
            acl allowed var(txn.direct) -m int gt 0
            http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)}) if allowed
            {plain_visit()}
            acl stream req.hdr(upgrade) -m found
            acl stream req.hdr(accept) -m beg -i text/event-stream
            # Streams last: they are served where they outlive this standby, as long as they can be.
            http-request set-var(txn.plain) bool(true) if {PLAIN_VISIT} !stream
            http-request set-var(txn.plain) bool(true) if {PLAIN_VISIT} {{ var(txn.left) -m int gt 0 }}
            # What is passed on has its rules where it is served.
            {sender(options, behind_standbys=False, condition=is_plain)}
            {share(options, host, condition=is_plain)}
            {app_connections.quick()}
            {app_connections.choice("listed", READS_PAGES, is_plain)}
            use_backend nobody_page if {nobody} {READS_PAGES}
            use_backend nobody_envelope if {nobody}
            use_backend {page} if {READS_PAGES}
            default_backend {envelope}
            """,
        ),
        *(
            backend
            for form in Form
            for backend in app_connections.backends(
                "listed",
                "visits",
                form,
                counting.requests(),
                forward_rules(options),
                answer_rules(),
                answers.crashed(files, form),
            )
        ),
        *(counting.table(name) for name in counting.TABLES),
        *(
            section(
                f"backend {table} from visits",
                f"stick-table type string len 8 size 1 expire {seconds * 1000:.0f} store gpt0",
            )
            for table, seconds in ((TABLE, PROXY_SECONDS), (DIRECT_TABLE, DIRECT_PROXY_SECONDS))
        ),
    )
