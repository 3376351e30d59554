"""The proxy's configuration as pure text. HAProxy 3.0's own manual is the source of every keyword.

A request goes through one frontend, which finds its route, and one of two pairs of backends: the plain and the careful,
each for visitors who read pages and for those who read JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address

from builderd.adapters.previews.haproxy import answers, hold, pages, tokens
from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section

#: How long the counters of a host outlive its last request.
MEMORY_SECONDS = 7 * 86_400
#: The classes of statuses that are counted, in the order of their counters.
ANSWER_CLASSES = (2, 3, 4, 5)
DESCRIPTION = "builderd previews"
#: Counters by host: of plain requests, and of WebSockets and streams of events.
TABLES = ("activity", "streams")
#: One address holds at most this part of all connections, whatever the setting is.
ADDRESS_PART = 4

#: Headers that no visitor may send to an app: the platform's own, and what proxies tell apps about the visitor.
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
#: A browser names text/html; a client that names JSON, or neither, is no reader of pages.
_READS_PAGES = "{ req.hdr(accept) -m sub -i text/html } !{ req.hdr(accept) -m sub -i application/json }"
#: Of IPv6, a /64: its user has 2^64 addresses.
_ADDRESS = "src,ipmask(32,64)"
#: A host with something else than digits after its colon.
_ODD_PORT = "req.hdr(host) -m reg :.*[^0-9]"
_DOMAIN = r";[ \t]*domain[ \t]*="
#: The rest is taken without a way back: with one for each byte, a long rest would be more than the search can remember,
#: and a search that gives up is to HAProxy one that has found nothing.
_WIDE_COOKIE = rf"(?i)^(.*?){_DOMAIN}[^;]*((?:(?!{_DOMAIN}).)*+)(?:{_DOMAIN}.*)?$"


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
        _frontend(options, files, host),
        *(_plain(options, files, form) for form in Form),
        *(_careful(options, files, form) for form in Form),
        *(_counters(table) for table in TABLES),
        _visitors(),
    )
    rest = "\n".join(sections)
    content = (_global(options, files, host, ""), rest, hold.script(), *pages.documents().values())
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
        hold.load(files, locked_in=host.user is not None),
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


def _frontend(options: ProxyOptions, files: ProxyFiles, host: Host) -> str:
    """What is plain takes a short way: each rule on it is one that every request pays for."""
    plain = "public repeatable path_only !odd_port !brought"
    return section(
        "frontend visitors from base",
        f"""
        bind {_bind(options)}
        {_admission(options, host)}
        {_sender(options)}
        {_share(options, host)}
        # Whatever its case, its port and the dot at its end: a host that is not in the map gets no further.
        http-request set-var(txn.host) req.hdr(host),host_only,rtrim(.)
        # state|access|ip|port|sha256 of the token|builder
        http-request set-var(txn.route) var(txn.host),map_str({quoted(files.routes)})

        acl public var(txn.route) -m beg open|public|
        acl repeatable method GET HEAD OPTIONS
        acl path_only url -m beg /
        acl path_only req.ver 2.0
        acl odd_port {_ODD_PORT}
        {tokens.brought()}
        use_backend plain_page if {_READS_PAGES} {plain}
        use_backend plain_envelope if {plain}
        use_backend careful_page if {_READS_PAGES}
        default_backend careful_envelope
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
        http-request set-src req.hdr_ip(x-forwarded-for,-1) if from_proxy says_who
        # Of several lines the last is taken, and just that one is judged.
        http-request set-var(txn.proto) req.fhdr(x-forwarded-proto,-1),lower if from_proxy
        http-request set-var(txn.proto) str({_own_scheme(options)}) if !{{ var(txn.proto) -m str http https }}
        """


def _most(options: ProxyOptions, host: Host) -> int:
    """What one address may hold; 0: as much as it likes."""
    return min(options.address_connections, max(host.max_connections // ADDRESS_PART, 1))


def _admission(options: ProxyOptions, host: Host) -> str:
    """Limit the connections of one address, or it would take all that visitors share. A trusted proxy's are many's."""
    if not (most := _most(options, host)):
        return ""
    networks = " ".join(str(network) for network in options.trusted_proxies)
    return f"""
        tcp-request connection track-sc1 {_ADDRESS} table visitors{f" if !{{ src {networks} }}" if networks else ""}
        tcp-request connection reject if {{ sc1_conn_cur gt {most} }}
        """


def _share(options: ProxyOptions, host: Host) -> str:
    """Count what shares a connection by itself: each such request holds a connection to an app.

    So do requests of HTTP/2, and those that a trusted proxy forwards, which count for the visitor that it names.
    """
    if not (most := _most(options, host)):
        return ""
    forwarded = " or from_proxy says_who" if options.trusted_proxies else ""
    return f"""
        acl multiplexed req.ver 2.0
        http-request track-sc2 {_ADDRESS} table visitors if multiplexed{forwarded}
        http-request deny deny_status 429 if {{ sc2_conn_cur gt {most} }}
        """


def _own_scheme(options: ProxyOptions) -> str:
    return "https" if options.certificate else "http"


def _scheme(options: ProxyOptions) -> str:
    return "%[var(txn.proto)]" if options.trusted_proxies else _own_scheme(options)


def _plain(options: ProxyOptions, files: ProxyFiles, form: Form) -> str:
    """A request that may be repeated, without a token, for an app that everybody may see.

    A visitor's connection to the app is the visitor's own. An app may close it just as a request goes out on it: after
    a pause, such a request is sent again, once, over a new one; without a pause the copy is not worth its time.
    """
    return section(
        f"backend plain_{form} from base",
        _passage(options),
        answers.crashed(files, form),
        """
        http-reuse never
        http-request disable-l7-retry if { req.timer.idle lt 50 }
        server app 0.0.0.0:0
        """,
    )


def _careful(options: ProxyOptions, files: ProxyFiles, form: Form) -> str:
    """Every other request, and whatever is to be said where there is no app.

    There are two doors to the app: connections of ``kept`` are used again; of ``fresh``, for what may not be repeated
    and for what is, they are not.
    """
    return section(
        f"backend careful_{form} from base",
        f"""
        {answers.unknown(files, form)}
        http-request deny deny_status 405 if {{ method CONNECT TRACE }}
        http-request deny deny_status 400 if {{ {_ODD_PORT} }}
        {tokens.proof(options)}
        # Before anything tells whether the app runs.
        {answers.refused(files, form)}
        {tokens.welcome(options)}
        {answers.logs(options)}
        {hold.wait(form)}
        {answers.closed(files, form)}
        # GET http://host/path is GET /path to an app.
        http-request set-uri %[pathq] if !{{ url -m beg / }} !{{ url -m beg * }}
        {tokens.removal()}
        """,
        _passage(options),
        answers.crashed(files, form),
        """
        acl repeatable method GET HEAD OPTIONS
        http-request disable-l7-retry if !repeatable
        use-server kept if repeatable
        use-server fresh if !repeatable
        # Without a low mark, threads steal each other's idle connections as soon as there are several apps.
        server kept 0.0.0.0:0 weight 0 pool-low-conn 10000
        server fresh 0.0.0.0:0 pool-max-conn 0
        """,
    )


def _passage(options: ProxyOptions) -> str:
    """How a request is made ready for an app, and its answer for the visitor."""
    return f"""
        # Streams go on for as long as both sides like: they are counted apart.
        http-request track-sc0 var(txn.host) table streams if {{ req.hdr(upgrade) -m found }}
        http-request track-sc0 var(txn.host) table streams if {{ req.hdr(accept) -m beg -i text/event-stream }}
        http-request track-sc0 var(txn.host) table activity
        http-request set-dst var(txn.route),field(3,|)
        http-request set-dst-port var(txn.route),field(4,|)
        http-request del-header (?i)^({"|".join(_OURS)})$ -m reg
        http-request add-header X-Forwarded-For %[src]
        http-request add-header X-Forwarded-Proto {_scheme(options)}
        http-request add-header X-Forwarded-Host %[req.hdr(host)]
        # A cookie for the parent domain would reach the sibling previews: each is made the app's own. Whoever names two
        # domains in one cookie means harm; of that cookie, what is before the second is left.
        http-response replace-header Set-Cookie '{_WIDE_COOKIE}' '\\1\\2' if {{ res.fhdr(set-cookie) -m sub -i domain }}
        # Cookies are cleared for all of the site, the siblings' with them; what else there is, for this host alone.
        acl clears_cookies res.fhdr(clear-site-data) -m sub -i cookies *
        http-response set-header Clear-Site-Data '"cache", "storage"' if clears_cookies
        # An app that cannot be reached crashed like one that breaks off; an app's own 503 is its own.
        http-after-response set-status 502 if {{ status 503 }} {{ server_status 0 }} {{ var(txn.route) -m beg open| }}
        {_count_answers()}
        retries 1
        retry-on empty-response
        """


def _count_answers() -> str:
    """By the class of the status, whoever gave the answer; each class has one of the table's counters."""
    return "\n".join(
        f"http-after-response sc-inc-gpc({counter},0) if {{ status {cls}00:{cls}99 }}"
        for counter, cls in enumerate(ANSWER_CLASSES)
    )


def _counters(table: str) -> str:
    requests = "http_req_cnt,http_req_rate(60s),bytes_in_cnt,bytes_out_cnt,conn_cur,http_fail_cnt"
    counters = f"{requests},gpc({len(ANSWER_CLASSES)})"
    return section(
        f"backend {table} from base",
        f"stick-table type string len 254 size 100k expire {MEMORY_SECONDS}s store {counters}",
    )


def _visitors() -> str:
    """What each address holds at the moment; an entry lives on for as long as something is counted on it."""
    return section("backend visitors from base", "stick-table type ipv6 size 100k expire 60s store conn_cur")
