"""The proxy's configuration as pure text. HAProxy 3.0's own manual is the source of every keyword.

A request goes through one frontend, which finds the route and the visitor's right to it, and then to one of a few
backends: an app, or an answer that says why there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address

from builderd.adapters.previews.haproxy import answers, pages, tokens
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section

#: How long the counters of a host outlive its last request.
MEMORY_SECONDS = 7 * 86_400
DESCRIPTION = "builderd previews"

#: What else than X-Forwarded-… proxies tell apps about the visitor: only what this one sees is passed on.
_FORGEABLE = (
    "Forwarded",
    "X-Real-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "True-Client-IP",
    "Proxy",
    "HTTP2-Settings",
)


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine allows. ``user`` is who the worker becomes when root starts it, else None."""

    max_connections: int
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """``digest`` names the text together with the pages it reads; a running proxy tells the one it was started with."""

    text: str
    digest: str


def render(options: ProxyOptions, files: ProxyFiles, host: Host) -> Configuration:
    sections = (
        _defaults(options),
        _frontend(options, files),
        _app_defaults(options),
        _app("app_page", answers.crashed(files, as_html=True)),
        _app("app_envelope", answers.crashed(files, as_html=False)),
        answers.closed(options, files),
        answers.unknown(files),
        answers.refused(files),
        tokens.welcome(options),
        _activity(),
    )
    rest = "\n".join(sections)
    content = (_global(options, files, host, ""), rest, *pages.documents().values())
    digest = sha256("\0".join(content).encode()).hexdigest()[:16]
    return Configuration(f"{_global(options, files, host, digest)}\n{rest}", digest)


def _global(options: ProxyOptions, files: ProxyFiles, host: Host, digest: str) -> str:
    return section(
        "global",
        f"description {quoted(f'{DESCRIPTION} {digest}')}",
        f"nbthread {options.threads}" if options.threads else "",
        f"maxconn {host.max_connections}",
        "# A taken port is an error, not a port that two services share by halves.",
        "noreuseport",
        f"user {host.user}\nchroot {quoted(files.jail)}" if host.user else "",
        f"stats socket {quoted(files.admin_socket)} mode 600 level admin",
        "stats timeout 60s",
        f"hard-stop-after {options.timeouts.drain}s",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
    )


def _defaults(options: ProxyOptions) -> str:
    times = options.timeouts
    return section(
        "defaults base",
        f"""
        mode http
        timeout connect {times.connect}s
        timeout http-request {times.request}s
        timeout http-keep-alive {times.keep_alive}s
        timeout client {times.client}s
        timeout client-fin 30s
        timeout server {times.server}s
        timeout server-fin 30s
        timeout tunnel {times.tunnel}s
        option http-no-delay
        # A visitor who hangs up has left, also for the app and for the count of open connections.
        option abortonclose
        # A reload closes an idle connection after its next request, so that no visitor meets a dead one.
        option idle-close-on-response
        # X_Forwarded_For and X-Forwarded-For are one name to a WSGI app: a name with an underscore is not passed on.
        option http-restrict-req-hdr-names delete
        """,
    )


def _frontend(options: ProxyOptions, files: ProxyFiles) -> str:
    return section(
        "frontend visitors from base",
        f"""
        bind {_bind(options)}
        http-request deny deny_status 405 if {{ method CONNECT TRACE }}
        {_sender(options)}
        # Whatever its case, its port and the dot at its end: a host that is not in the map gets no further.
        http-request deny deny_status 400 if {{ req.hdr(host) -m sub : }} !{{ req.hdr(host) -m reg :[0-9]*$ }}
        http-request set-var(txn.host) req.hdr(host),host_only,rtrim(.)
        # state|access|ip|port|sha256 of the token|builder
        http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)})
        http-request set-var(txn.hash) var(txn.route),field(5,|)
        {tokens.proof(options)}
        use_backend unknown if !{{ var(txn.route) -m found }}
        # Before anything tells whether the app runs.
        use_backend refused if {{ var(txn.route),field(2,|) -m str private }} !{{ var(txn.owner) -m bool }}
        # A WebSocket's client does not follow a redirect.
        use_backend welcome if {{ var(txn.by_link) -m bool }} {{ method GET HEAD }} !{{ req.hdr(upgrade) -m found }}
        use_backend closed if !{{ var(txn.route) -m beg open| }}
        use_backend app_page if {answers.WANTS_HTML}
        default_backend app_envelope
        """,
    )


def _bind(options: ProxyOptions) -> str:
    tls = f" ssl crt {quoted(options.certificate)} alpn h2,http/1.1" if options.certificate else ""
    return f"{quoted(_listen(options))}{tls}"


def _listen(options: ProxyOptions) -> str:
    try:
        return f"ipv{ip_address(options.host).version}@{options.host}:{options.port}"
    except ValueError:
        return f"{options.host}:{options.port}"


def _sender(options: ProxyOptions) -> str:
    """Who is at the other end, and by which scheme: as a trusted proxy in front says, else as it is seen here."""
    if not options.trusted_proxies:
        return ""
    networks = " ".join(str(network) for network in options.trusted_proxies)
    return f"""
        acl from_proxy fc_src {networks}
        acl says_who req.hdr_ip(x-forwarded-for,-1) -m found
        acl says_scheme req.fhdr(x-forwarded-proto) -i http https
        http-request set-src req.hdr_ip(x-forwarded-for,-1) if from_proxy says_who
        http-request set-var(txn.proto) str({_own_scheme(options)})
        http-request set-var(txn.proto) req.fhdr(x-forwarded-proto),lower if from_proxy says_scheme
        """


def _own_scheme(options: ProxyOptions) -> str:
    return "https" if options.certificate else "http"


def _scheme(options: ProxyOptions) -> str:
    return "%[var(txn.proto)]" if options.trusted_proxies else _own_scheme(options)


def _app_defaults(options: ProxyOptions) -> str:
    """How a request is made ready for an app, and its answer for the visitor."""
    return section(
        "defaults app from base",
        f"""
        http-request track-sc0 var(txn.host) table activity
        http-request set-dst var(txn.route),field(3,|)
        http-request set-dst-port var(txn.route),field(4,|)
        {answers.logs(options)}
        # GET http://host/path is GET /path to an app.
        http-request set-uri %[pathq] if !{{ url -m beg / }} !{{ url -m beg * }}
        {tokens.removal()}
        {_forwarded(options)}
        {_own_cookies()}
        # An app that cannot be reached crashed like one that breaks off; an app's own 503 is its own.
        http-after-response set-status 502 if {{ status 503 }} {{ server_status 0 }}
        # An app may close an idle connection just as a request goes out on it. What is safe to repeat is sent again,
        # once, over a new connection; what is not never goes over a used one.
        retries 1
        retry-on empty-response
        """,
    )


def _forwarded(options: ProxyOptions) -> str:
    forgeable = "\n".join(f"http-request del-header {name}" for name in _FORGEABLE)
    return f"""
        http-request del-header X-Forwarded- -m beg
        {forgeable}
        http-request set-header X-Forwarded-For %[src]
        http-request set-header X-Real-IP %[src]
        http-request set-header X-Forwarded-Proto {_scheme(options)}
        http-request set-header X-Forwarded-Host %[req.hdr(host)]
        """


def _own_cookies() -> str:
    """A cookie for the parent domain would reach the sibling previews: each is made the app's own.

    Whoever names two domains in one cookie means harm; of that cookie, name and value are left.
    """
    return r"""
        acl wide res.fhdr(set-cookie) -m sub -i domain
        http-response replace-header Set-Cookie '(?i)^(.*?);[ \t]*domain[ \t]*=[^;]*(.*)$' '\1\2' if wide
        http-response replace-header Set-Cookie '(?i)^([^;]*);(?:.*;)?[ \t]*domain[ \t]*=.*$' '\1' if wide
        """


def _app(name: str, errors: str) -> str:
    """Two doors to the same app: connections of ``kept`` are used again; of ``fresh``, for retries too, not."""
    return section(
        f"backend {name} from app",
        errors,
        """
        use-server kept if { method GET HEAD OPTIONS }
        use-server fresh if !{ method GET HEAD OPTIONS }
        # Without a low mark, threads steal each other's idle connections as soon as there are several apps.
        server kept 0.0.0.0:0 weight 0 pool-low-conn 10000
        server fresh 0.0.0.0:0 pool-max-conn 0
        """,
    )


def _activity() -> str:
    counters = "http_req_cnt,http_req_rate(60s),bytes_in_cnt,bytes_out_cnt,conn_cur,http_fail_cnt"
    return section(
        "backend activity from base",
        f"stick-table type string len 254 size 100k expire {MEMORY_SECONDS}s store {counters}",
    )
