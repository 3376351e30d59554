"""Configuration by which a standby serves visits of listed routes itself, while no service works. Pure.

Its proxy has a list of routes to running, public apps at all times (``domain.route_list``), and uses it only up to a
time that the service moves: by this machine's clock, and no longer than ``PROXY_SECONDS`` from then by the proxy's own,
which nobody sets. So a proxy whose service was killed, or that finishes what is open, ends its use by itself.

Visits that a working proxy would send on its fast path go to the app; all others get 503 with ``Retry-After``.
"""

from __future__ import annotations

from builderd.adapters.previews.haproxy import answers, receiving
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.config import (
    PLAIN_VISIT,
    READS_PAGES,
    Host,
    asked_host,
    defaults,
    forward_rules,
    plain_visit,
    sender,
    share,
)
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section
from builderd.domain.route_list import PROXY_SECONDS

#: Server of the backend of visitors that leads to these sections.
SERVER = "listed"
#: Table whose one entry has the time, in seconds since 1970, up to which the list may be used.
TABLE, KEY = "list_until", "list"
#: Servers by which visits go to apps.
APPS = tuple(f"listed_{form}/app" for form in Form)


def is_served(options: ProxyOptions) -> bool:
    """Return True where visits come as plain HTTP: TLS ends at the service that works, which has the certificates."""
    return options.certificate is None and options.tls_port is None


def server(files: ProxyFiles, *, chrooted: bool) -> str:
    """Return the line for the server that leads to these sections; the runtime API turns it on."""
    path = f"/{files.http_socket.name}" if chrooted else str(files.http_socket)
    return f"server {SERVER} {quoted(f'unix@{path}')} send-proxy-v2 disabled"


def sections(options: ProxyOptions, files: ProxyFiles, host: Host) -> tuple[str, ...]:
    """Return the sections. Backends ``nobody_page`` and ``nobody_envelope`` answer what is not served."""
    return (
        defaults(options, "visits"),
        section(
            "frontend listed from visits",
            f"""
            {receiving.bind(files.http_socket, host.user, "proto h1")}
            # So that the next visit of a client goes to the service that works by then.
            option httpclose
            {sender(options, behind_standbys=True)}
            {share(options, host)}
            {asked_host()}
            http-request set-var(txn.until) str({KEY}),table_gpt0({TABLE})
            http-request set-var(txn.left) date,neg,add(txn.until)
            http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)}) \
if {{ var(txn.left) -m int gt 0 }}
            {plain_visit()}
            use_backend listed_page if {READS_PAGES} {PLAIN_VISIT}
            use_backend listed_envelope if {PLAIN_VISIT}
            use_backend nobody_page if {READS_PAGES}
            default_backend nobody_envelope
            """,
        ),
        *(
            section(
                f"backend listed_{form} from visits",
                forward_rules(options),
                answers.crashed(files, form),
                """
                http-reuse never
                # An address is dialled once, as long as it is the app's for sure.
                retries 0
                server app 0.0.0.0:0
                """,
            )
            for form in Form
        ),
        section(
            f"backend {TABLE} from visits",
            f"stick-table type string len 8 size 1 expire {PROXY_SECONDS:.0f}s store gpt0",
        ),
    )
