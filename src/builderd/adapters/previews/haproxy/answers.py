"""The proxy's own answers: a page for who reads HTML, the failure envelope for everybody else."""

from __future__ import annotations

from builderd.adapters.previews.haproxy import pages
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.pages import Page
from builderd.adapters.previews.haproxy.section import quoted, section

#: A browser names text/html; a client that names JSON, or neither, is no reader of pages.
WANTS_HTML = "{ req.hdr(accept) -m sub -i text/html } !{ req.hdr(accept) -m sub -i application/json }"


def closed(options: ProxyOptions, files: ProxyFiles) -> str:
    """A route without an app, by its state."""
    answers = (_answer(files, page, f"{{ var(txn.route) -m beg {page.name}| }}") for page in pages.CLOSED)
    return section("backend closed from base", logs(options), *answers)


def unknown(files: ProxyFiles) -> str:
    return section("backend unknown from base", _answer(files, pages.UNKNOWN))


def refused(files: ProxyFiles) -> str:
    """The same whether the app runs or not: a stranger learns nothing of its state."""
    return section(
        "backend refused from base", _answer(files, pages.PRIVATE, header='hdr WWW-Authenticate "Service-Token"')
    )


def crashed(files: ProxyFiles, *, as_html: bool) -> str:
    """For what the proxy itself makes of an app that cannot be reached (503), breaks off (502) or is silent (504)."""
    errors = ((502, pages.CRASHED), (503, pages.CRASHED), (504, pages.TIMED_OUT))
    return "\n".join(f"http-error status {status} {_content(files, page, as_html=as_html)}" for status, page in errors)


def logs(options: ProxyOptions) -> str:
    """Set ``txn.logs``, for the builder's owner alone."""
    url = f"{options.api_url}/api/v1/builders/%[var(txn.route),field(6,|)]/logs"
    sentence = quoted(f" It is yours: GET {url} shows its logs.")
    return (
        f"http-request set-var-fmt(txn.logs) {sentence} "
        "if { var(txn.owner) -m bool } { var(txn.route),field(6,|) -m len 36 }"
    )


def _answer(files: ProxyFiles, page: Page, condition: str = "", header: str = "") -> str:
    start = f"http-request return status {page.status}"
    as_html = f"{start} {_content(files, page, as_html=True)} {header} if {condition} {WANTS_HTML}"
    otherwise = f"if {condition}" if condition else ""
    return f"{as_html}\n{start} {_content(files, page, as_html=False)} {header} {otherwise}"


def _content(files: ProxyFiles, page: Page, *, as_html: bool) -> str:
    name = pages.html_name(page) if as_html else pages.json_name(page)
    kind = '"text/html; charset=utf-8"' if as_html else "application/json"
    headers = ["hdr Cache-Control no-store", "hdr X-Content-Type-Options nosniff"]
    if as_html:
        headers.append(f"hdr Content-Security-Policy {quoted(pages.POLICY)}")
    if page.retry_after:
        headers.append(f"hdr Retry-After {page.retry_after}")
    return f"content-type {kind} lf-file {quoted(files.pages / name)} {' '.join(headers)}"
