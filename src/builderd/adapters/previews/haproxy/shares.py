"""Rules for the other ports of a preview, and for links that open a private one to their holders.

``<port>--<host>`` is another port of the preview ``<host>``, always private. It needs no entry of its own: from the
lookup on, all rules see the preview's host (``txn.host``) and its route, and ``txn.at_port``.

A link's token stands where the service token does. The map of links has the sha256 of each token, and as its value
``host|port|end`` with ``-`` for the preview's own port and the end in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable

from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.section import quoted

#: A port, and nothing above 65535.
_PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9][0-9]|6[0-4][0-9][0-9][0-9]|[1-5][0-9]{4}|[1-9][0-9]{0,3})"


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


def dial() -> str:
    """Return the rule that dials the other port."""
    return "http-request set-dst-port var(txn.at_port) if { var(txn.at_port) -m found }"


def guests(files: ProxyFiles, sources: Iterable[tuple[str, str]]) -> str:
    """Return the rules that set ``txn.guest`` for a request with the token of a link to this host and port.

    ``sources`` are where a token may be, and a further condition. The first is the query: its link becomes a cookie.
    """
    in_map = f"sha2(256),hex,lower,map_str({quoted(files.links)})"
    holds = (
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
            f"http-request set-var(txn.guest) bool(true) if {holds}{also}",
        ]
        if number == 0:
            rules.append("http-request set-var(txn.by_link) bool(true) if { var(txn.guest) -m bool }")
    return "\n".join((*rules, "acl known var(txn.owner) -m bool", "acl known var(txn.guest) -m bool"))
