"""Pages for requests that no app answers: one HTML page and one JSON envelope for each case. Pure.

The texts are HAProxy log formats: ``%[var(…)]`` is filled in per request, any other ``%`` is doubled. Filled
in are only the host, which matched a route and so contains only ``a-z0-9.-``, and the sentence about the logs, made of
a checked URL and a UUID; no text of a visitor or a user reaches a page unescaped.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

HOST = "%[var(txn.asked)]"
#: Set only for requests with the builder's service token; begins with a space.
LOGS = "%[var(txn.logs)]"

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Page:
    """A page; ``pages.toml`` says what its fields are. One that names the host is only for welcome visitors."""

    name: str
    status: int
    code: str
    mood: str
    title: str
    text: str
    retry_after: int | None = None
    refresh: bool = False
    names_host: bool = True


#: Of ``pages.toml``, by their names.
PAGES = {
    name: Page(name, **entry)
    for name, entry in tomllib.loads(Path(__file__).with_name("pages.toml").read_text()).items()
}
ALL = tuple(PAGES.values())


def _pages(names: str) -> tuple[Page, ...]:
    return tuple(PAGES[name] for name in names.split())


#: Pages by the state of the route, or by the page that ``pause.lua`` chose.
NOT_OPEN = _pages("starting held asleep unheard full stopped capped failed job worker")
FULL = PAGES["full"]
#: Pages of an app, and of the API, that breaks off, cannot be reached, or is silent.
CRASHED = _pages("broken_off unreachable timed_out")
API_ERRORS = _pages("api_broken_off api_down api_timed_out")


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
