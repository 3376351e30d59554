"""The service's API and pages behind the proxy, under the host of ``public_url``.

That host is an entry of the map of domains (``domains``), whose preview is ``API``: so it is found, gets a certificate
and is redirected to HTTPS as a custom domain is.
"""

from __future__ import annotations

from builderd.adapters.previews.haproxy import answers, domains, pages
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section
from builderd.domain.previews import API

#: The API has at most one in this many of all connections, so that it leaves some to the previews.
PART = 2
#: Connections that the service's own listener takes.
MOST = 4_000


def choice(reads_pages: str) -> str:
    """Return the rules that choose the backend. Only the map decides: a visitor may send ``Host: api``."""
    return f"""
        acl for_api var(txn.domain),field(2,|) -m str {API}
        use_backend api_page if for_api {reads_pages}
        use_backend api_envelope if for_api
        """


def backend(options: ProxyOptions, files: ProxyFiles, form: Form, part: int, *, chrooted: bool) -> str:
    """Return the backend. Each request has a connection of its own to the API, which begins with the visitor's address.

    Nothing goes over plain HTTP: requests carry tokens. Before there is a certificate, the answer says so.
    """
    socket = f"/{files.api_socket.name}" if chrooted else str(files.api_socket)
    secure = "{ var(txn.proto) -m str https }"
    plain = f"{answers.answer(files, pages.API_WITHOUT_CERTIFICATE, form)} if !{secure}"
    hsts = f"http-after-response set-header Strict-Transport-Security max-age={options.hsts}"
    return section(
        f"backend api_{form} from base",
        f"""
        http-request deny deny_status 400 if {{ {domains.ODD_PORT} }}
        {plain if options.has_both_schemes else ""}
        {f"{hsts} if {secure}" if options.hsts else ""}
        {answers.api_errors(files, form)}
        # A kept connection might be closed by the API just as a request is sent on it; a new one costs little here.
        option http-server-close
        http-reuse never
        timeout queue 5s
        server service {quoted(f"unix@{socket}")} send-proxy-v2 maxconn {min(part, MOST)}
        """,
    )
