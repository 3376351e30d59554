"""The proxy's configuration as text. Pure. Keywords are those of HAProxy 3.0's manual.

A request goes through one frontend, which finds its route, and one of two backends: for clients that read HTML pages,
and for those that read JSON.

A custom domain is another name of a builder's preview, found in a map of its own. From the lookup on, all rules see the
preview's host (``txn.host``), so that routes, tokens, pauses and counters need not know of domains. ``txn.asked`` is
the host that the visitor asked for. The host of ``public_url`` is an entry of that map too, whose preview is ``API``:
it gets a certificate and is redirected to HTTPS as a custom domain is.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address

from builderd.adapters.previews.haproxy import counters, pages, pause, tokens
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions, quoted, section
from builderd.adapters.previews.haproxy.pages import Form
from builderd.domain.previews import API

DESCRIPTION = "builderd previews"
#: One address has at most this share of all connections, even if the setting allows more.
ADDRESS_PART = 4

#: Headers that no visitor may send to an app: the platform's own, and those by which proxies describe the visitor.
_OURS = (
    "x-(original-)?forwarded(-.*)?",
    "forwarded(-for)?",
    "x-real-ip",
    "((x|x-cluster|true|fastly)-)?client-ip",
    "cf-connecting-ip",
    "proxy",
    "http2-settings",
    tokens.HEADER.lower(),
)
#: A browser accepts text/html; a client that accepts JSON, or neither, gets no page.
READS_PAGES = "{ req.hdr(accept) -m sub -i text/html } !{ req.hdr(accept) -m sub -i application/json }"
#: Of IPv6, a /64: its user has 2^64 addresses.
_ADDRESS = "src,ipmask(32,64)"
#: Bytes of an answer that the kernel takes for a visitor who reads nothing; it doubles the value, and without one takes
#: 4 MB, so that one address might fill the machine's memory for TCP. 5 MB/s at 100 ms.
SEND_BUFFER = 256 << 10
_DOMAIN = r";[ \t]*domain[ \t]*="
#: The rest is matched without backtracking: it would exceed the matcher's limit for a long rest, and HAProxy takes an
#: aborted match for no match.
_WIDE_COOKIE = rf"(?i)^(.*?){_DOMAIN}[^;]*((?:(?!{_DOMAIN}).)*+)(?:{_DOMAIN}.*)?$"


CHALLENGE_PATH = "/.well-known/acme-challenge/"
#: A host with something else than digits after its colon.
ODD_PORT = "req.hdr(host) -m reg :.*[^0-9]"
#: A map without a file: answers to challenges by token.
CHALLENGES = "virt@acme"
#: The API has at most one in this many of all connections, so that it leaves some to the previews.
API_PART = 2
#: Connections that the service's own listener takes.
API_MOST = 4_000
#: A request is sent once, at the address that its route has at that moment. HAProxy's retries would dial the same
#: address again, which may be another tenant's by then. Each request has a connection of its own, so that an app's end
#: of an idle one fails none.
_ONCE = "retries 0"
_FRESH_SERVER = "0.0.0.0:0 pool-max-conn 0"


@dataclass(frozen=True, slots=True)
class Host:
    """Limits of this machine. ``user`` is the user that the worker becomes if root starts it, else None."""

    max_connections: int
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration's text. ``digest`` covers text, script and pages; a running proxy reports its own."""

    text: str
    digest: str


def render(options: ProxyOptions, files: ProxyFiles, host: Host) -> Configuration:
    sections = (
        _defaults(options),
        _frontend(options, files, host),
        *(_preview(options, files, form) for form in Form),
        *(_api(options, files, form, host) for form in Form if options.serves_api),
        _challenge(),
        counters.tables(),
        # Open connections by address; an entry stays while it counts any.
        section("backend visitors from base", "stick-table type ipv6 size 100k expire 60s store conn_cur"),
    )
    rest = "\n".join(sections)
    content = (_global(options, files, host, ""), rest, pause.script(), *pages.documents().values())
    digest = sha256("\0".join(content).encode()).hexdigest()[:16]
    return Configuration(f"{_global(options, files, host, digest)}\n{rest}", digest)


def _global(options: ProxyOptions, files: ProxyFiles, host: Host, digest: str) -> str:
    return section(
        "global",
        f"description {quoted(f'{DESCRIPTION} {digest}')}",
        f"nbthread {options.threads}" if options.threads else "",
        f"maxconn {host.max_connections}",
        f"tune.sndbuf.client {SEND_BUFFER}",
        "tune.stick-counters 4",
        "# A taken port is an error, not a port that two services share by halves.",
        "noreuseport",
        f"user {host.user}\nchroot {quoted(files.jail)}" if host.user else "",
        f"stats socket {quoted(files.admin_socket)} mode 600 level admin",
        "stats timeout 60s",
        f"hard-stop-after {options.timeouts.drain}s",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
        pause.load(files, _part(host, pause.PART), chrooted=host.user is not None),
    )


def _defaults(options: ProxyOptions) -> str:
    """Return the defaults of sections that serve visitors."""
    times = options.timeouts
    return section(
        "defaults base",
        f"""
        mode http
        timeout connect {times.connect}s
        # Without it a handshake has the time of a quiet stream, an hour.
        timeout client-hs {times.handshake}s
        timeout http-request {times.request}s
        timeout http-keep-alive {times.keep_alive}s
        timeout client {times.client}s
        timeout client-fin 30s
        timeout server {times.server}s
        timeout server-fin 30s
        timeout tunnel {times.tunnel}s
        option http-no-delay
        # A visitor's closed connection closes the app's too, and ends its count as open.
        option abortonclose
        # A reload closes an idle connection after its next request, so that no request fails.
        option idle-close-on-response
        # X_Forwarded_For and X-Forwarded-For are one name to a WSGI app: a name with an underscore is not passed on.
        option http-restrict-req-hdr-names delete
        """,
    )


def _frontend(options: ProxyOptions, files: ProxyFiles, host: Host) -> str:
    return section(
        "frontend visitors from base",
        f"""
        {_binds(options, files)}
        {_admission(options, host)}
        {_sender(options)}
        {_share(options, host)}
        # Case, port and a trailing dot do not matter; a host that is in no map gets a 404.
        http-request set-var(txn.asked) req.hdr(host),host_only,rtrim(.)
        http-request set-var(txn.host) var(txn.asked)
        acl challenge path_beg {CHALLENGE_PATH}
        # state|access|ip|port|sha256 of the token|builder, and |h2c for an app that speaks HTTP/2
        http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)})
        {tokens.ports(files)}
        {_domain_rules(options, files)}
        use_backend challenge if challenge
        {_api_choice() if options.serves_api else ""}
        use_backend preview_page if {READS_PAGES}
        default_backend preview_envelope
        """,
    )


def _binds(options: ProxyOptions, files: ProxyFiles) -> str:
    if options.tls_port is None:
        tls = f"ssl crt {quoted(options.certificate)} alpn h2,http/1.1" if options.certificate else ""
        return f"bind {quoted(_listen(options.host, options.port))} {tls}"
    crt = f"crt {quoted(options.certificate or files.default_certificate)} crt-list {quoted(files.certificate_list)}"
    tls = f"ssl {crt} alpn h2,http/1.1"
    return f"""
        bind {quoted(_listen(options.host, options.port))}
        bind {quoted(_listen(options.host, options.tls_port))} {tls}
        """


def _listen(host: str, port: int) -> str:
    try:
        return f"ipv{ip_address(host).version}@{host}:{port}"
    except ValueError:
        return f"{host}:{port}"


def _sender(options: ProxyOptions) -> str:
    """Return the rules for the visitor's address and scheme: from a trusted proxy's headers, else the connection."""
    if not options.trusted_proxies:
        return _own_proto(options) if options.has_both_schemes else ""
    networks = " ".join(str(network) for network in options.trusted_proxies)
    return f"""
        acl from_proxy fc_src {networks}
        acl has_sender req.hdr_ip(x-forwarded-for,-1) -m found
        http-request set-src req.hdr_ip(x-forwarded-for,-1) if from_proxy has_sender
        # Only the last of several lines counts.
        http-request set-var(txn.proto) req.fhdr(x-forwarded-proto,-1),lower if from_proxy
        {_own_proto(options, "!{ var(txn.proto) -m str http https }")}
        """


def _own_proto(options: ProxyOptions, condition: str = "") -> str:
    """Return the rules that set ``txn.proto`` to the scheme of the visitor's connection to this proxy."""
    if options.tls_port is None:
        return f"http-request set-var(txn.proto) str({_own_scheme(options)}) if {condition or 'TRUE'}"
    return f"""
        http-request set-var(txn.proto) str(https) if {{ ssl_fc }} {condition}
        http-request set-var(txn.proto) str(http) if !{{ ssl_fc }} {condition}
        """


def _most(options: ProxyOptions, host: Host) -> int:
    """Return the limit for one address, capped at its part of all connections; 0 without a limit."""
    return min(options.address_connections, _part(host, ADDRESS_PART))


def _part(host: Host, part: int) -> int:
    """Return this part of all connections."""
    return max(host.max_connections // part, 1)


def _admission(options: ProxyOptions, host: Host) -> str:
    """Limit the connections of one address. A trusted proxy's connections carry many visitors and are not limited."""
    if not (most := _most(options, host)):
        return ""
    networks = " ".join(str(network) for network in options.trusted_proxies)
    return f"""
        tcp-request connection track-sc1 {_ADDRESS} table visitors{f" if !{{ src {networks} }}" if networks else ""}
        tcp-request connection reject if {{ sc1_conn_cur gt {most} }}
        """


def _share(options: ProxyOptions, host: Host) -> str:
    """Count each request of a shared connection for its address, since it has a connection to an app.

    These are requests of HTTP/2, and those of a trusted proxy, which count for the visitor that it names.
    """
    if not (most := _most(options, host)):
        return ""
    forwarded = " or from_proxy has_sender" if options.trusted_proxies else ""
    return f"""
        acl multiplexed req.ver 2.0 3.0
        http-request track-sc2 {_ADDRESS} table visitors if multiplexed{forwarded}
        http-request deny deny_status 429 if {{ sc2_conn_cur gt {most} }}
        """


def _own_scheme(options: ProxyOptions) -> str:
    return "https" if options.speaks_tls_only else "http"


def _preview(options: ProxyOptions, files: ProxyFiles, form: Form) -> str:
    """Return the backend that leads to apps, and answers for routes without one.

    Two servers lead to the app: ``fresh``, and ``h2c``, which speaks HTTP/2, so that several requests may be on one
    connection. Other ports of the app speak HTTP/1.
    """
    scheme = "%[var(txn.proto)]" if options.has_both_schemes else _own_scheme(options)
    return section(
        f"backend preview_{form} from base",
        f"""
        {pages.unknown(files, form)}
        http-request deny deny_status 405 if {{ method CONNECT TRACE }}
        http-request deny deny_status 400 if {{ {ODD_PORT} }}
        {tokens.proof(options, files)}
        # First of all rules that depend on the app's state.
        {pages.private(files, form)}
        {tokens.redirect_to_cookie(options)}
        {pages.logs(options)}
        {pause.rules(form)}
        {pages.not_open(files, form)}
        # GET http://host/path is GET /path to an app.
        http-request set-uri %[pathq] if !{{ url -m beg / }} !{{ url -m beg * }}
        {tokens.removal()}
        """,
        counters.requests(),
        f"""
        http-request set-dst var(txn.route),field(3,|)
        http-request set-dst-port var(txn.route),field(4,|)
        http-request del-header (?i)^({"|".join(_OURS)})$ -m reg
        option forwardfor
        http-request add-header X-Forwarded-Proto {scheme}
        http-request add-header X-Forwarded-Host %[req.hdr(host)]
        # A cookie for the parent domain would reach the sibling previews, so the domain is removed. A cookie with two
        # domains is an attack: what precedes the second is kept.
        http-response replace-header Set-Cookie '{_WIDE_COOKIE}' '\\1\\2' if {{ res.fhdr(set-cookie) -m sub -i domain }}
        # Cookies are cleared for all of the site, the siblings' with them; what else there is, for this host alone.
        acl clears_cookies res.fhdr(clear-site-data) -m sub -i cookies *
        http-response set-header Clear-Site-Data '"cache", "storage"' if clears_cookies
        """,
        # An app that cannot be reached crashed like one that breaks off; an app's own 503 is its own.
        "http-after-response set-status 502 if { status 503 } { server_status 0 } { var(txn.route) -m beg open| }",
        counters.answers(),
        # Another port of the app.
        "http-request set-dst-port var(txn.at_port) if { var(txn.at_port) -m found }",
        pages.errors(files, pages.CRASHED, form),
        f"""
        {_ONCE}
        acl h2c var(txn.route),field(7,|) -m str h2c
        use-server h2c if h2c !{{ var(txn.at_port) -m found }}
        server fresh {_FRESH_SERVER}
        server h2c {_FRESH_SERVER} weight 0 proto h2
        """,
    )


def _challenge() -> str:
    """Return the backend for the path by which an authority checks a host: no request below it reaches an app.

    An app that answered there could get a certificate for the operator's domain.
    """
    plain = "content-type text/plain"
    return section(
        "backend challenge from base",
        f"""
        http-request set-var(txn.proof) path,field(4,/),map_str({CHALLENGES})
        http-request return status 200 {plain} lf-string %[var(txn.proof)] if {{ var(txn.proof) -m found }}
        http-request return status 404 {plain} string "no such challenge"
        """,
    )


def _domain_rules(options: ProxyOptions, files: ProxyFiles) -> str:
    """Return the rules that find a domain's preview. The map's values are ``http|host`` and ``https|host``."""
    return f"""
        http-request set-var(txn.domain) var(txn.asked),map_str({quoted(files.domains)}) \
if !{{ var(txn.route) -m found }}
        acl by_domain var(txn.domain) -m found
        http-request set-var(txn.host) var(txn.domain),field(2,|) if by_domain
        http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)}) if by_domain
        {_tls_rules(options, files) if options.tls_port is not None else ""}
        """


def _tls_rules(options: ProxyOptions, files: ProxyFiles) -> str:
    """Return the rules that keep a domain to connections that were made for it, and redirect it to HTTPS."""
    port = options.public_tls_port or options.tls_port
    authority = "%[var(txn.asked)]" if port == 443 else f"%[var(txn.asked)]:{port}"
    misdirected = 'http-request return status 421 content-type text/plain string "wrong host for this connection"'
    redirect = f"http-request redirect prefix https://{authority} code 308 if"
    previews = f"{redirect} {{ var(txn.route) -m found }} !by_domain !secure !challenge"
    covered = f"{redirect} {{ var(txn.domain) -m str http|{API} }} !secure !challenge"
    return f"""
        acl named ssl_fc_sni -m found
        acl same_name ssl_fc_sni,lower,rtrim(.),strcmp(txn.asked) eq 0
        acl named_domain ssl_fc_sni,lower,rtrim(.),map_str({quoted(files.domains)}) -m found
        {misdirected} if by_domain named !same_name
        {misdirected} if named !same_name named_domain
        acl secure var(txn.proto) -m str https
        {redirect} {{ var(txn.domain) -m beg https| }} !secure !challenge
        {covered if options.api_has_certificate else ""}
        {previews if options.certificate or options.wildcard else ""}
        """


def _api_choice() -> str:
    """Return the rules that choose the API's backend. Only the map decides: a visitor may send ``Host: api``."""
    return f"""
        acl for_api var(txn.domain),field(2,|) -m str {API}
        use_backend api_page if for_api {READS_PAGES}
        use_backend api_envelope if for_api
        """


def _api(options: ProxyOptions, files: ProxyFiles, form: Form, host: Host) -> str:
    """Return the backend of the service's API and pages, under the host of ``public_url``.

    Each request has a connection of its own to the API, which begins with the visitor's address.

    Nothing goes over plain HTTP: requests carry tokens. Before there is a certificate, the answer says so.
    """
    socket = f"/{files.api_socket.name}" if host.user else str(files.api_socket)
    secure = "{ var(txn.proto) -m str https }"
    plain = f"{pages.answer(files, pages.API_WITHOUT_CERTIFICATE, form)} if !{secure}"
    hsts = f"http-after-response set-header Strict-Transport-Security max-age={options.hsts}"
    return section(
        f"backend api_{form} from base",
        f"""
        http-request deny deny_status 400 if {{ {ODD_PORT} }}
        {plain if options.has_both_schemes else ""}
        {f"{hsts} if {secure}" if options.hsts else ""}
        {pages.errors(files, pages.API_ERRORS, form)}
        # A kept connection might be closed by the API just as a request is sent on it; a new one costs little here.
        option http-server-close
        http-reuse never
        timeout queue 5s
        server service {quoted(f"unix@{socket}")} send-proxy maxconn {min(_part(host, API_PART), API_MOST)}
        """,
    )
