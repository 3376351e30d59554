"""Connections to apps, and which requests share one. Pure.

A request is sent once, at the address that its route has at that moment. HAProxy's retries would dial the same address
again, however late the first connection ends without an answer, and by then it may be another tenant's: a member that
was lost and a sandbox that was killed with its network acknowledge nothing, and what the kernel sends again meets the
next owner, which resets the connection.

So that an app's end of an idle connection fails no request, requests after a pause get a connection of their own.
"""

from __future__ import annotations

from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.section import section

#: Milliseconds of silence on a visitor's connection after which an app may be closing its own.
PAUSE = 50
#: Neither a connection that was refused, nor a request without an answer.
ONCE = "retries 0"
#: Suffix of the backends whose requests get a connection of their own.
FRESH = "_fresh"
#: Server without an address of its own, and with one connection for each request.
FRESH_SERVER = "0.0.0.0:0 pool-max-conn 0"


def quick() -> str:
    """Return the ACL ``quick``: the last request of the visitor's connection ended just before."""
    return f"acl quick req.timer.idle lt {PAUSE}"


def choice(name: str, reads_pages: str, condition: str) -> str:
    """Return the rules that lead requests to the backends of ``backends``."""
    return f"""
        use_backend {name}_page if {reads_pages} {condition} quick
        use_backend {name}_envelope if {condition} quick
        use_backend {name}_page{FRESH} if {reads_pages} {condition}
        use_backend {name}_envelope{FRESH} if {condition}
        """


def backends(name: str, defaults: str, form: Form, *rules: str) -> tuple[str, str]:
    """Return two backends of these rules: each visitor's connection has one to the app, and each request has one."""
    return (
        section(f"backend {name}_{form} from {defaults}", *rules, ONCE, "http-reuse never", "server app 0.0.0.0:0"),
        section(f"backend {name}_{form}{FRESH} from {defaults}", *rules, ONCE, f"server app {FRESH_SERVER}"),
    )
