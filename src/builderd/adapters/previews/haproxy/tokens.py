"""The tokens of private previews: where a request may carry one, its check, and its removal before the app.

A route carries the sha256 of its token, and HAProxy hashes the request's token: the map contains no secret, and no
request waits for the service. ``txn.hash`` is the route's, ``txn.linked`` the token in the query; ``txn.by_link`` is
set if that one is right, ``txn.owner`` if any is, ``txn.guest`` if any is that of a link.

``<port>--<host>`` is another port of the preview ``<host>``, always private. It needs no entry of its own: from the
lookup on, all rules see the preview's host (``txn.host``) and its route, and ``txn.at_port``.

A link's token stands where the service token does. The map of links has the sha256 of each token, and as its value
``host|port|end`` with ``-`` for the preview's own port and the end in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable

from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions, quoted

HEADER = "X-Service-Token"
PARAMETER = "service_token"
COOKIE = "builderd_service_token"
#: Only a secure origin of exactly this host can set it (RFC 6265bis): no sibling preview can.
SECURE_COOKIE = f"__Host-{COOKIE}"

#: For HAProxy, ``,`` also ends a cookie, and ``;`` and ``?`` also end a parameter.
_COOKIE_PATTERN = rf"(^|[;,])[ \t]*(__Host-)?{COOKIE}[ \t]*=[^;,]*"
_PARAMETER_PATTERN = rf"(^|[&;?]){PARAMETER}=[^&;?]*"
#: A port, and nothing above 65535.
_PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9][0-9]|6[0-4][0-9][0-9][0-9]|[1-5][0-9]{4}|[1-9][0-9]{0,3})"


def proof(options: ProxyOptions, files: ProxyFiles) -> str:
    """Return the rules that check the token. One right token suffices: an old or planted one beside it does no harm."""
    proven = "sha2(256),hex,lower,secure_memcmp(txn.hash)"
    sources = (
        (f"req.fhdr({HEADER})", ""),
        *((f"req.cook({name})", " !foreign") for name in _cookies(options)),
    )
    return "\n".join(
        (
            "http-request set-var(txn.hash) var(txn.route),field(5,|)",
            f"http-request set-var(txn.linked) url_param({PARAMETER})",
            f"http-request set-var(txn.by_link) bool(true) if {{ var(txn.linked),{proven} }}",
            "http-request set-var(txn.owner) bool(true) if { var(txn.by_link) -m bool }",
            _foreign(),
            *(
                f"http-request set-var(txn.owner) bool(true) if {{ {source},{proven} }}{also}"
                for source, also in sources
            ),
            "acl owner var(txn.owner) -m bool",
            _guests(files, (("var(txn.linked)", ""), *sources)),
        )
    )


def _foreign() -> str:
    """Define ``foreign``: whether a page of another host had the browser send this request, and it is no visit.

    To a browser, sibling previews are one site: it sends the cookie, despite SameSite, with each request that a
    sibling's page makes, and lets that page read what comes over a WebSocket. ``Origin`` names the page for those and
    for what changes something, ``Sec-Fetch-*`` for scripts and images that it includes.
    """
    return """
        http-request set-var(txn.page) req.fhdr(origin),regsub("^[a-z]+://",""),host_only,rtrim(.)
        acl own_page var(txn.page),strcmp(txn.asked) eq 0
        http-request set-var(txn.foreign) bool(true) if { req.fhdr(origin) -m found } !own_page
        acl included req.fhdr(sec-fetch-site) -m str -i same-site cross-site
        acl visited req.fhdr(sec-fetch-mode) -m str -i navigate
        http-request set-var(txn.foreign) bool(true) if included !visited
        acl foreign var(txn.foreign) -m bool
        """


def _cookies(options: ProxyOptions) -> tuple[str, ...]:
    if options.has_both_schemes:
        return (SECURE_COOKIE, COOKIE)
    return (SECURE_COOKIE,) if options.speaks_tls_only else (COOKIE,)


def redirect_to_cookie(options: ProxyOptions) -> str:
    """Return the rules that turn a link with the right token into a cookie and a redirect to the address without it.

    A WebSocket's client follows no redirect: it is let through. The address stays relative. One that begins with two
    slashes (or characters that browsers treat as slashes) would lead to another host: a dot segment before it keeps
    it on this one (RFC 3986, 5.2.4).
    """
    return "\n".join(
        (
            f"""http-request set-var(txn.rest) query,'regsub("{_PARAMETER_PATTERN}","",g)',ltrim(&;?)""",
            "http-request set-var(txn.mark) str(?) if !{ var(txn.rest) -m len 0 }",
            r"http-request set-var(txn.dot) str(/.) if { path -m reg '^/[/\\]' }",
            "acl by_link var(txn.by_link) -m bool",
            "acl upgrades req.hdr(upgrade) -m found",
            *_redirects(options),
        )
    )


def _redirects(options: ProxyOptions) -> tuple[str, ...]:
    plain = _redirect(COOKIE, "HttpOnly; SameSite=Lax")
    secure = _redirect(SECURE_COOKIE, "Secure; HttpOnly; SameSite=Lax")
    if options.has_both_schemes:
        return (f"{secure} {{ var(txn.proto) -m str https }}", plain)
    return (secure,) if options.speaks_tls_only else (plain,)


def _redirect(cookie: str, attributes: str) -> str:
    return (
        'http-request return status 302 hdr Location "%[var(txn.dot)]%[path]%[var(txn.mark)]%[var(txn.rest)]" '
        f'hdr Set-Cookie "{cookie}=%[var(txn.linked)]; Path=/; {attributes}" '
        'hdr Cache-Control "no-store" hdr Referrer-Policy "no-referrer" if by_link { method GET HEAD } !upgrades'
    )


def removal() -> str:
    """Return the rules that remove the token from the request, and reject a request from which it cannot be removed.

    In a public preview the parameter belongs to the app, unless it is the token.
    """
    rest = f"""'%[req.fhdr(cookie),regsub("{_COOKIE_PATTERN}","",g),ltrim("; ")]'"""
    return f"""
        acl cookie_left req.cook({COOKIE}) -m found
        acl cookie_left req.cook({SECURE_COOKIE}) -m found
        http-request set-header Cookie {rest} if {{ req.fhdr_cnt(cookie) eq 1 }}
        http-request del-header Cookie if {{ req.fhdr(cookie) -m len 0 }}
        http-request deny deny_status 400 if cookie_left

        acl linked var(txn.linked) -m found
        http-request set-pathq %[path]%[var(txn.mark)]%[var(txn.rest)] if linked known
        http-request deny deny_status 400 if linked known {{ url_param({PARAMETER}) -m found }}
        """


def ports(files: ProxyFiles) -> str:
    """Return the rules that find the preview of ``<port>--<host>``, for a host that has no route of its own."""
    unknown = "!{ var(txn.route) -m found }"
    return f"""
        http-request set-var(txn.at_port) var(txn.asked),field(1,-) \
if {unknown} {{ var(txn.asked) -m reg '^{_PORT}--' }}
        acl at_port var(txn.at_port) -m found
        http-request set-var(txn.port_host) 'var(txn.asked),regsub("^[0-9]+--","")' if at_port
        http-request set-var(txn.route) var(txn.port_host),map_str({quoted(files.routes)}) if at_port
        http-request set-var(txn.host) var(txn.port_host) if at_port {{ var(txn.route) -m found }}
        """


def _guests(files: ProxyFiles, sources: Iterable[tuple[str, str]]) -> str:
    """Return the rules that set ``txn.guest`` for a request with the token of a link to this host and port.

    ``sources`` are where a token may be, and a further condition. The first is the query: its link becomes a cookie.
    """
    in_map = f"sha2(256),hex,lower,map_str({quoted(files.links)})"
    fits = (
        "{ var(txn.link),field(1,|),strcmp(txn.host) eq 0 } { var(txn.link),field(2,|),strcmp(txn.want_port) eq 0 } "
        "{ var(txn.link),field(3,|),sub(txn.now) gt 0 }"
    )
    rules = [
        "http-request set-var(txn.now) date",
        "http-request set-var(txn.want_port) str(-)",
        "http-request set-var(txn.want_port) var(txn.at_port) if { var(txn.at_port) -m found }",
    ]
    for number, (source, also) in enumerate(sources):
        rules += [
            "http-request unset-var(txn.link)",
            f"http-request set-var(txn.link) {source},{in_map}",
            f"http-request set-var(txn.guest) bool(true) if {fits}{also}",
        ]
        if number == 0:
            rules.append("http-request set-var(txn.by_link) bool(true) if { var(txn.guest) -m bool }")
    return "\n".join((*rules, "acl known var(txn.owner) -m bool", "acl known var(txn.guest) -m bool"))
