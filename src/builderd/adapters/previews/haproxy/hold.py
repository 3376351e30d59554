"""The hold: requests wait for an app that is about to come (back), in ``hold.lua``."""

from __future__ import annotations

from pathlib import Path

from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.section import quoted
from builderd.adapters.previews.haproxy.waiting import HOLDING

#: So many seconds a browser waits for its page until it gets one that looks again by itself, and everybody else for an
#: answer. Longer than the first, an app that starts would look like one that hangs.
PAGE_PATIENCE, PATIENCE = 2, 30


def script() -> str:
    return Path(__file__).with_name("hold.lua").read_text()


def load(files: ProxyFiles, *, locked_in: bool) -> str:
    """``locked_in``: the worker sees its jail as the root of all paths."""
    socket = f"/{files.wake_socket.name}" if locked_in else str(files.wake_socket)
    return f"""
        lua-load {quoted(files.hold)} {quoted(files.routes)} {quoted(f"unix@{socket}")}
        # Of running, not of waiting.
        tune.lua.session-timeout {2 * PATIENCE}s
        """


def wait(form: Form) -> str:
    """Only who may see the app gets here, so that nobody else wakes it. What was sent beside the headers stays unread.

    A browser's form is held as long as an API's call: a page that looks again would lose what was sent.
    """
    page = f"http-request set-var(txn.patience) int({PAGE_PATIENCE * 1000}) if {{ method GET HEAD }}"
    states = " || ".join(f"{{ var(txn.route) -m beg {state}| }}" for state in sorted(HOLDING))
    return f"""
        http-request set-var(txn.patience) int({PATIENCE * 1000})
        {page if form is Form.PAGE else ""}
        http-request lua.hold if {states}
        """
