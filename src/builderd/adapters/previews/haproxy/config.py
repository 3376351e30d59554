"""The proxy's configuration as text. Pure. Keywords are those of HAProxy 3.0's manual.

A request goes through one frontend, which finds its route, and one of two pairs of backends: the fast path and the full
path, each for clients that read HTML pages and for those that read JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address

from builderd.adapters.previews.haproxy import (
    answers,
    api,
    app_connections,
    counting,
    domains,
    pages,
    pause,
    shares,
    tokens,
)
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section

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
#: A repeatable request without a token to an open public app: it needs none of the full path's rules.
PLAIN_VISIT = "public repeatable path_only !odd_port !brought !challenge"
#: Of IPv6, a /64: its user has 2^64 addresses.
_ADDRESS = "src,ipmask(32,64)"
#: Bytes of an answer that the kernel takes for a visitor who reads nothing; it doubles the value, and without one takes
#: 4 MB, so that one address might fill the machine's memory for TCP. 5 MB/s at 100 ms.
SEND_BUFFER = 256 << 10
_DOMAIN = r";[ \t]*domain[ \t]*="
#: The rest is matched without backtracking: it would exceed the matcher's limit for a long rest, and HAProxy takes an
#: aborted match for no match.
_WIDE_COOKIE = rf"(?i)^(.*?){_DOMAIN}[^;]*((?:(?!{_DOMAIN}).)*+)(?:{_DOMAIN}.*)?$"


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
        defaults(options, "base"),
        _frontend(options, files, host),
        *(backend for form in Form for backend in _fast_path(options, files, form)),
        *(_full_path(options, files, form) for form in Form),
        *(
            api.backend(options, files, form, _part(host, api.PART), chrooted=host.user is not None)
            for form in Form
            if options.serves_api
        ),
        domains.challenge(),
        *(counting.table(name) for name in counting.TABLES),
        visitors(),
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
        "# A taken port is an error, not a port that two services share by halves.",
        "noreuseport",
        f"user {host.user}\nchroot {quoted(files.jail)}" if host.user else "",
        f"stats socket {quoted(files.admin_socket)} mode 600 level admin",
        "stats timeout 60s",
        f"hard-stop-after {options.timeouts.drain}s",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
        pause.load(files, _part(host, pause.PART), chrooted=host.user is not None),
    )


def defaults(options: ProxyOptions, name: str) -> str:
    """Return the defaults of sections that serve visitors."""
    times = options.timeouts
    return section(
        f"defaults {name}",
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
    """Return the frontend. Plain requests take the fast path, since every rule costs each request time."""
    is_fast = f"{PLAIN_VISIT} !at_port"
    return section(
        "frontend visitors from base",
        f"""
        {_binds(options, files)}
        {admission(options, host)}
        {sender(options)}
        {share(options, host)}
        {asked_host()}
        # state|access|ip|port|sha256 of the token|builder, and |h2c for an app that speaks HTTP/2
        http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)})
        {domains.end_lookup(options)}
        {shares.ports(files)}
        {domains.rules(options, files)}
        {plain_visit()}
        {app_connections.quick()}
        {app_connections.choice("fast", READS_PAGES, is_fast)}
        use_backend challenge if challenge
        {api.choice(READS_PAGES) if options.serves_api else ""}
        use_backend full_page if {READS_PAGES}
        default_backend full_envelope
        """,
    )


def asked_host() -> str:
    """Return the rules for the host that a visitor asks for, and for the path of authorities."""
    return f"""
        # Case, port and a trailing dot do not matter; a host that is in no map gets a 404.
        http-request set-var(txn.asked) req.hdr(host),host_only,rtrim(.)
        http-request set-var(txn.host) var(txn.asked)
        acl challenge path_beg {domains.CHALLENGE_PATH}
        """


def plain_visit() -> str:
    """Return the ACLs that ``PLAIN_VISIT`` names, behind ``asked_host``."""
    return f"""
        acl public var(txn.route) -m beg open|public|
        acl repeatable method GET HEAD OPTIONS
        acl path_only url -m beg /
        acl path_only req.ver 2.0 3.0
        acl odd_port {domains.ODD_PORT}
        {tokens.token_acl()}
        """


def _binds(options: ProxyOptions, files: ProxyFiles) -> str:
    if options.tls_port is None:
        tls = f"ssl crt {quoted(options.certificate)} alpn h2,http/1.1" if options.certificate else ""
        return f"bind {quoted(listen(options.host, options.port))} {tls}"
    crt = f"crt {quoted(options.certificate or files.default_certificate)} crt-list {quoted(files.certificate_list)}"
    tls = f"ssl {crt} alpn h2,http/1.1"
    return f"""
        bind {quoted(listen(options.host, options.port))}
        bind {quoted(listen(options.host, options.tls_port))} {tls}
        """


def listen(host: str, port: int) -> str:
    try:
        return f"ipv{ip_address(host).version}@{host}:{port}"
    except ValueError:
        return f"{host}:{port}"


def sender(options: ProxyOptions) -> str:
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


def admission(options: ProxyOptions, host: Host) -> str:
    """Limit the connections of one address. A trusted proxy's connections carry many visitors and are not limited."""
    if not (most := _most(options, host)):
        return ""
    networks = " ".join(str(network) for network in options.trusted_proxies)
    return f"""
        tcp-request connection track-sc1 {_ADDRESS} table visitors{f" if !{{ src {networks} }}" if networks else ""}
        tcp-request connection reject if {{ sc1_conn_cur gt {most} }}
        """


def share(options: ProxyOptions, host: Host) -> str:
    """Count each request of a shared connection for its address, since it holds a connection to an app.

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


def _scheme(options: ProxyOptions) -> str:
    return "%[var(txn.proto)]" if options.has_both_schemes else _own_scheme(options)


def _fast_path(options: ProxyOptions, files: ProxyFiles, form: Form) -> tuple[str, ...]:
    """Return the backends of the fast path: repeatable requests without a token to a public app."""
    return app_connections.backends(
        "fast",
        "base",
        form,
        counting.requests(),
        forward_rules(options),
        answer_rules(),
        answers.crashed(files, form),
    )


def _full_path(options: ProxyOptions, files: ProxyFiles, form: Form) -> str:
    """Return the backend of the full path: all other requests, and the answers for routes without an app.

    Two servers lead to the app, by connections that end once they carry no request: ``fresh``, and ``h2c``, which
    speaks HTTP/2, so that several may be on one. Other ports of the app speak HTTP/1.
    """
    return section(
        f"backend full_{form} from base",
        f"""
        {answers.unknown(files, form)}
        http-request deny deny_status 405 if {{ method CONNECT TRACE }}
        http-request deny deny_status 400 if {{ {domains.ODD_PORT} }}
        {tokens.proof(options, files)}
        # First of all rules that depend on the app's state.
        {answers.private(files, form)}
        {tokens.redirect_to_cookie(options)}
        {answers.logs(options)}
        {pause.rules(form)}
        {answers.not_open(files, form)}
        # GET http://host/path is GET /path to an app.
        http-request set-uri %[pathq] if !{{ url -m beg / }} !{{ url -m beg * }}
        {tokens.removal()}
        """,
        counting.requests(),
        forward_rules(options),
        answer_rules(),
        shares.dial(),
        answers.crashed(files, form),
        f"""
        {app_connections.ONCE}
        acl h2c var(txn.route),field(7,|) -m str h2c
        use-server h2c if h2c !{{ var(txn.at_port) -m found }}
        server fresh {app_connections.FRESH_SERVER}
        server h2c {app_connections.FRESH_SERVER} weight 0 proto h2
        """,
    )


def forward_rules(options: ProxyOptions) -> str:
    """Return the rules that prepare a request for the app of ``txn.route``, and its answer for the visitor."""
    return f"""
        http-request set-dst var(txn.route),field(3,|)
        http-request set-dst-port var(txn.route),field(4,|)
        http-request del-header (?i)^({"|".join(_OURS)})$ -m reg
        # Adds X-Forwarded-For in half the time that a rule takes.
        option forwardfor
        http-request add-header X-Forwarded-Proto {_scheme(options)}
        http-request add-header X-Forwarded-Host %[req.hdr(host)]
        # A cookie for the parent domain would reach the sibling previews, so the domain is removed. A cookie with two
        # domains is an attack: what precedes the second is kept.
        http-response replace-header Set-Cookie '{_WIDE_COOKIE}' '\\1\\2' if {{ res.fhdr(set-cookie) -m sub -i domain }}
        # Cookies are cleared for all of the site, the siblings' with them; what else there is, for this host alone.
        acl clears_cookies res.fhdr(clear-site-data) -m sub -i cookies *
        http-response set-header Clear-Site-Data '"cache", "storage"' if clears_cookies
        """


def answer_rules() -> str:
    """Return the rules that count an app's answer and set its status. They end the rules for answers of the section.

    Most answers are usual: they meet none of the rules behind the first.
    """
    return f"""
        {counting.usual_answer()}
        # An app that cannot be reached crashed like one that breaks off; an app's own 503 is its own.
        http-after-response set-status 502 if {{ status 503 }} {{ server_status 0 }} {{ var(txn.route) -m beg open| }}
        {counting.other_answers()}
        """


def visitors() -> str:
    """Return the table of open connections by address; an entry stays while it counts any."""
    return section("backend visitors from base", "stick-table type ipv6 size 100k expire 60s store conn_cur")
