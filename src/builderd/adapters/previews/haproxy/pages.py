"""Pages for requests that no app answers: one HTML page and one JSON envelope for each case. Pure.

The texts are HAProxy log formats: ``%[var(…)]`` is filled in per request, any other ``%`` is doubled. Filled
in are only the host, which matched a route and so contains only ``a-z0-9.-``, and the sentence about the logs, made of
a checked URL and a UUID; no text of a visitor or a user reaches a page unescaped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from pathlib import Path

from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions, quoted

HOST = "%[var(txn.asked)]"
#: Set only for requests with the builder's service token; begins with a space.
LOGS = "%[var(txn.logs)]"

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Page:
    """A page. ``retry_after`` in seconds, if a retry helps; with ``refresh`` a browser reloads the page by then.

    ``names_host``: it may name the host and say where the logs are; not before the visitor is known to be welcome.
    """

    name: str
    status: int
    code: str
    mood: str
    title: str
    text: str
    retry_after: int | None = None
    refresh: bool = False
    names_host: bool = True


def _soon(name: str, title: str, text: str) -> Page:
    """Return the page of an app that answers in a moment."""
    text += " This page looks again every two seconds; an API client may retry after that time."
    return Page(name, 503, "starting", "busy", title, text, retry_after=2, refresh=True)


STARTING = _soon("starting", "Starting up", "The app is being started.")
PAUSED = _soon(
    "held", "Just a moment", "The app will be back in a moment: it is being started, or replaced by its next version."
)
ASLEEP = _soon("asleep", "Waking up", "Nobody used the app for a while, so it was asleep; it is being started.")
UNHEARD = Page(
    "unheard",
    503,
    "engine_unavailable",
    "bad",
    "Cannot be started now",
    "The app does not run at the moment, and the service that starts it does not answer. This page looks again every "
    "five seconds; an API client may retry after that time.",
    retry_after=5,
    refresh=True,
)
FULL = Page(
    "full",
    503,
    "no_capacity",
    "bad",
    "No room right now",
    "Nobody used the app for a while, so it was stopped, and there is no room to start it now: the machine is full, or "
    "its owner may not run more at once. This page looks again every ten seconds; an API client may retry after that "
    "time.",
    retry_after=10,
    refresh=True,
)
STOPPED = Page(
    "stopped",
    503,
    "stopped",
    "calm",
    "Stopped",
    "The app was stopped by its owner. It answers again once its owner starts it.",
)
CAPPED = Page(
    "capped",
    503,
    "stopped",
    "calm",
    "Stopped",
    "The app was stopped since its spending cap is reached. It answers again once its owner raises the cap, or in the "
    "next month, and starts it.",
)
FAILED = Page(
    "failed",
    503,
    "failed",
    "bad",
    "Failed",
    "The app could not be started, or exited too often. Its owner finds the reason in its status and its logs, and can "
    "start it again or deploy a new version.",
)
JOB = Page(
    "job",
    503,
    "one_time_job",
    "calm",
    "Not a web app",
    "This is a one-time job: it runs to its end and serves no pages. Its owner finds its output in its logs.",
)
WORKER = Page(
    "worker",
    503,
    "worker",
    "calm",
    "Not a web app",
    "This is a worker: it runs in the background, listens on no port and serves no pages. Its owner finds its output "
    "in its logs.",
)
UNREACHABLE = Page(
    "unreachable",
    502,
    "app_crashed",
    "bad",
    "The app did not take the connection",
    "Nothing listens on the app's port now, or the app is too busy to take more visitors. An app that exited is "
    "started again by itself: retry in a few seconds.",
    retry_after=5,
)
BROKEN_OFF = Page(
    "broken_off",
    502,
    "app_crashed",
    "bad",
    "The app did not answer",
    "The app closed the connection before it had answered, or what it sent is not HTTP/1.1. An app that exited is "
    "started again by itself: retry in a few seconds.",
    retry_after=5,
)
TIMED_OUT = Page(
    "timed_out",
    504,
    "app_timed_out",
    "bad",
    "The app took too long",
    "The app took the request and did not answer in time. It may be busy or stuck.",
)
UNKNOWN = Page(
    "unknown",
    404,
    "not_found",
    "calm",
    "No preview here",
    "There is no preview at this address. It may have been deleted, or the address may be mistyped.",
    names_host=False,
)
PRIVATE = Page(
    "private",
    401,
    "unauthenticated",
    "calm",
    "This preview is private",
    "Open it with its service token: once as ?service_token=… in the address, which a cookie then keeps, or in the "
    "header X-Service-Token of every request.",
    names_host=False,
)

API_WITHOUT_CERTIFICATE = Page(
    "api_without_certificate",
    503,
    "engine_unavailable",
    "busy",
    "HTTPS is not ready yet",
    "The certificate of this host is being ordered; the service answers here over HTTPS alone. On the machine itself, "
    "GET /readyz and builderd doctor say what is missing.",
    retry_after=10,
    refresh=True,
    names_host=False,
)
API_DOWN = Page(
    "api_down",
    503,
    "engine_unavailable",
    "bad",
    "The service does not answer",
    "The service is being restarted, or has more to do than it can take. Apps and their previews go on.",
    retry_after=2,
    refresh=True,
    names_host=False,
)
API_BROKEN_OFF = Page(
    "api_broken_off",
    502,
    "engine_unavailable",
    "bad",
    "The service broke off",
    "The service ended before it had answered. What was asked may have been done: look before you repeat it, or send "
    "an Idempotency-Key.",
    retry_after=2,
    names_host=False,
)
API_TIMED_OUT = Page(
    "api_timed_out",
    504,
    "engine_unavailable",
    "bad",
    "The service took too long",
    "The service took the request and did not answer in time.",
    names_host=False,
)

#: Pages by the state of the route, or by the page that ``pause.lua`` chose.
NOT_OPEN = (STARTING, PAUSED, ASLEEP, UNHEARD, FULL, STOPPED, CAPPED, FAILED, JOB, WORKER)
OF_API = (API_WITHOUT_CERTIFICATE, API_DOWN, API_BROKEN_OFF, API_TIMED_OUT)
ALL = (*NOT_OPEN, UNREACHABLE, BROKEN_OFF, TIMED_OUT, UNKNOWN, PRIVATE, *OF_API)


def documents() -> dict[str, str]:
    """File name → content, for the ``pages`` directory."""
    texts = {f"{page.name}.html": html(page) for page in ALL}
    return texts | {f"{page.name}.json": envelope(page) for page in ALL}


def envelope(page: Page) -> str:
    """The failure envelope of the HTTP contract."""
    body: dict[str, object] = {
        "success": False,
        "code": page.code,
        "message": page.text + ("\0LOGS" if page.names_host else ""),
    }
    if page.names_host:
        body["data"] = {"host": "\0HOST"}
    return _filled(json.dumps(body, ensure_ascii=False), "\\u0000") + "\n"


def html(page: Page) -> str:
    """Return the page: no script, no external resource, light and dark."""
    refresh = f'<meta http-equiv="refresh" content="{page.retry_after}">\n' if page.refresh else ""
    host = '<p class="host">\0HOST</p>\n' if page.names_host else ""
    logs = '<p class="logs">\0LOGS</p>\n' if page.names_host else ""
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
{refresh}<title>{escape(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main class="{page.mood}">
<div class="sign" aria-hidden="true"></div>
<h1>{escape(page.title)}</h1>
<p>{escape(page.text)}</p>
{logs}{host}</main>
</body>
</html>
"""
    return _filled(text, "\0")


def _filled(text: str, mark: str) -> str:
    return text.replace("%", "%%").replace(f"{mark}HOST", HOST).replace(f"{mark}LOGS", LOGS)


_STYLE = Path(__file__).with_name("pages.css").read_text()


class Form(StrEnum):
    PAGE = "page"
    ENVELOPE = "envelope"


def unknown(files: ProxyFiles, form: Form) -> str:
    return f"{answer(files, UNKNOWN, form)} if !{{ var(txn.route) -m found }}"


def private(files: ProxyFiles, form: Form) -> str:
    """Return the rule for requests without the token; the answer does not reveal whether the app runs."""
    private_answer = answer(files, PRIVATE, form)
    wants = '{answer} hdr WWW-Authenticate "Service-Token" if {{ {condition} }} !known'
    conditions = ("var(txn.route),field(2,|) -m str private", "var(txn.at_port) -m found")
    return "\n".join(wants.format(answer=private_answer, condition=one) for one in conditions)


def not_open(files: ProxyFiles, form: Form) -> str:
    """Return the rules for routes without a running app, one for each state."""
    by_state = (f"{answer(files, page, form)} if {{ var(txn.route) -m beg {page.name}| }}" for page in NOT_OPEN)
    gone = f"{answer(files, UNKNOWN, form)} if !{{ var(txn.route) -m beg open| }}"
    return "\n".join((*by_state, gone))


#: Pages of an app, and of the API, that breaks off, cannot be reached, or is silent.
CRASHED, API_ERRORS = (BROKEN_OFF, UNREACHABLE, TIMED_OUT), (API_BROKEN_OFF, API_DOWN, API_TIMED_OUT)


def errors(files: ProxyFiles, by_status: tuple[Page, Page, Page], form: Form) -> str:
    """Return the pages in place of HAProxy's own errors, one for each status."""
    pages = zip((502, 503, 504), by_status, strict=True)
    return "\n".join(f"http-error status {status} {_content(files, page, form)}" for status, page in pages)


def logs(options: ProxyOptions) -> str:
    """Return the rule that sets ``txn.logs``, for the builder's owner only."""
    url = f"{options.api_url}/api/v1/builders/%[var(txn.route),field(6,|)]/logs"
    sentence = quoted(f" It is yours: GET {url} shows its logs.")
    return f"http-request set-var-fmt(txn.logs) {sentence} if owner {{ var(txn.route),field(6,|) -m len 36 }}"


def answer(files: ProxyFiles, page: Page, form: Form) -> str:
    """Return the rule that answers with this page, without its condition."""
    return f"http-request return status {page.status} {_content(files, page, form)}"


def _content(files: ProxyFiles, page: Page, form: Form) -> str:
    if form is Form.PAGE:
        name, kind = f"{page.name}.html", '"text/html; charset=utf-8"'
    else:
        name, kind = f"{page.name}.json", "application/json"
    headers = ["hdr Cache-Control no-store", "hdr X-Content-Type-Options nosniff"]
    if form is Form.PAGE:
        headers.append(f"hdr Content-Security-Policy {quoted(POLICY)}")
    if page.retry_after:
        headers.append(f"hdr Retry-After {page.retry_after}")
    return f"content-type {kind} lf-file {quoted(files.pages / name)} {' '.join(headers)}"
