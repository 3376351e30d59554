"""Rules that pause requests for an app that is asleep or being replaced; ``pause.lua`` holds the requests."""

from __future__ import annotations

from pathlib import Path

from builderd.adapters.previews.haproxy.answers import Form
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.paused_requests import PAUSING_STATES
from builderd.adapters.previews.haproxy.section import quoted

#: Seconds that a request is paused at most: of a browser that asks for a page, which then gets one that reloads itself,
#: and of every other. With more for a page, an app that starts would look like one that hangs.
MAX_PAGE_PAUSE, MAX_PAUSE = 2, 30
#: Part of all connections (1 in so many) that paused requests may hold. A tenant may have as many as it leaves free.
PART = 2
#: Lua instructions after which HAProxy may interrupt the script between two of its waits: more than it ever takes, so
#: that its counts are changed in one piece. At least, and for each request that may be paused.
UNINTERRUPTED, UNINTERRUPTED_EACH = 1_000_000, 100


def script() -> str:
    return Path(__file__).with_name("pause.lua").read_text()


def load(files: ProxyFiles, most: int, *, chrooted: bool) -> str:
    """Return the lines that load the script, for at most so many paused requests.

    A ``chrooted`` worker sees its jail as the root of all paths.
    """
    socket = f"/{files.wake_socket.name}" if chrooted else str(files.wake_socket)
    return f"""
        lua-load {quoted(files.pause_script)} {quoted(files.routes)} {quoted(f"unix@{socket}")} {most}
        # Counts the time that the script runs, not the time that it waits.
        tune.lua.session-timeout {2 * MAX_PAUSE}s
        tune.lua.forced-yield {max(UNINTERRUPTED, UNINTERRUPTED_EACH * most)}
        """


def rules(form: Form) -> str:
    """Return the rules. They follow the check of the token, so that a stranger wakes no app.

    A form sent by a browser is paused as long as an API call: a page that reloads would lose what was sent.
    """
    page = f"http-request set-var(txn.max_pause) int({MAX_PAGE_PAUSE * 1000}) if {{ method GET HEAD }}"
    states = " || ".join(f"{{ var(txn.route) -m beg {state}| }}" for state in sorted(PAUSING_STATES))
    return f"""
        http-request set-var(txn.max_pause) int({MAX_PAUSE * 1000})
        {page if form is Form.PAGE else ""}
        http-request lua.pause if {states}
        """
