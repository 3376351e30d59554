"""Rules for custom domains: a domain is another name of a builder's preview, found in a map of its own.

From the lookup on, all rules see the preview's host (``txn.host``), so that routes, tokens, pauses and counters need
not know of domains. ``txn.asked`` is the host that the visitor asked for.
"""

from __future__ import annotations

from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted, section
from builderd.domain.previews import API

CHALLENGE_PATH = "/.well-known/acme-challenge/"
#: A host with something else than digits after its colon.
ODD_PORT = "req.hdr(host) -m reg :.*[^0-9]"
#: A map without a file: answers to challenges by token.
CHALLENGES = "virt@acme"


def challenge() -> str:
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


def end_lookup(options: ProxyOptions) -> str:
    """Return the rule that ends the frontend's rules for a host with a route: those behind it look for one.

    With a port for TLS, they also refuse and redirect requests for hosts that have one.
    """
    return "" if options.tls_port is not None else "http-request allow if { var(txn.route) -m found }"


def rules(options: ProxyOptions, files: ProxyFiles) -> str:
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
