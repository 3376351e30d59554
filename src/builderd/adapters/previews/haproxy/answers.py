"""The proxy's own answers: a page for clients that accept HTML, the failure envelope for all others."""

from __future__ import annotations

from enum import StrEnum

from builderd.adapters.previews.haproxy import pages
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.pages import Page
from builderd.adapters.previews.haproxy.section import quoted


class Form(StrEnum):
    PAGE = "page"
    ENVELOPE = "envelope"


def unknown(files: ProxyFiles, form: Form) -> str:
    return f"{answer(files, pages.UNKNOWN, form)} if !{{ var(txn.route) -m found }}"


def private(files: ProxyFiles, form: Form) -> str:
    """Return the rule for requests without the token; the answer does not reveal whether the app runs."""
    private_answer = answer(files, pages.PRIVATE, form)
    wants = '{answer} hdr WWW-Authenticate "Service-Token" if {{ {condition} }} !known'
    conditions = ("var(txn.route),field(2,|) -m str private", "var(txn.at_port) -m found")
    return "\n".join(wants.format(answer=private_answer, condition=one) for one in conditions)


def not_open(files: ProxyFiles, form: Form) -> str:
    """Return the rules for routes without a running app, one for each state."""
    by_state = (f"{answer(files, page, form)} if {{ var(txn.route) -m beg {page.name}| }}" for page in pages.NOT_OPEN)
    gone = f"{answer(files, pages.UNKNOWN, form)} if !{{ var(txn.route) -m beg open| }}"
    return "\n".join((*by_state, gone))


def crashed(files: ProxyFiles, form: Form) -> str:
    """Return the error pages for an app that cannot be reached (503), breaks off (502) or is silent (504)."""
    errors = ((502, pages.BROKEN_OFF), (503, pages.UNREACHABLE), (504, pages.TIMED_OUT))
    return "\n".join(f"http-error status {status} {_content(files, page, form)}" for status, page in errors)


def api_errors(files: ProxyFiles, form: Form) -> str:
    """Return the error pages for an API that cannot be reached (503), breaks off (502) or is silent (504)."""
    errors = ((502, pages.API_BROKEN_OFF), (503, pages.API_DOWN), (504, pages.API_TIMED_OUT))
    return "\n".join(f"http-error status {status} {_content(files, page, form)}" for status, page in errors)


def logs(options: ProxyOptions) -> str:
    """Return the rule that sets ``txn.logs``, for the builder's owner only."""
    url = f"{options.api_url}/api/v1/builders/%[var(txn.route),field(6,|)]/logs"
    sentence = quoted(f" It is yours: GET {url} shows its logs.")
    return f"http-request set-var-fmt(txn.logs) {sentence} if owner {{ var(txn.route),field(6,|) -m len 36 }}"


def answer(files: ProxyFiles, page: Page, form: Form) -> str:
    """Return the rule that answers with this page, without its condition."""
    return f"http-request return status {page.status} {_content(files, page, form)}"


def _content(files: ProxyFiles, page: Page, form: Form) -> str:
    name = pages.html_name(page) if form is Form.PAGE else pages.json_name(page)
    kind = '"text/html; charset=utf-8"' if form is Form.PAGE else "application/json"
    headers = ["hdr Cache-Control no-store", "hdr X-Content-Type-Options nosniff"]
    if form is Form.PAGE:
        headers.append(f"hdr Content-Security-Policy {quoted(pages.POLICY)}")
    if page.retry_after:
        headers.append(f"hdr Retry-After {page.retry_after}")
    return f"content-type {kind} lf-file {quoted(files.pages / name)} {' '.join(headers)}"
