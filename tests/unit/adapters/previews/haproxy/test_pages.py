"""Pages are whole, escaped, self-contained; and each state of a route has one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from builderd.adapters.previews.haproxy import pages
from builderd.adapters.previews.haproxy.pages import Page
from builderd.domain.previews import RouteState


def filled(text: str) -> str:
    """Fill in a log format as HAProxy does."""
    text = text.replace(pages.HOST, "a.localhost").replace(pages.LOGS, " Logs.")
    assert not re.search(r"%(?!%)", text.replace("%%", ""))
    return text.replace("%%", "%")


@pytest.mark.parametrize("page", pages.ALL, ids=lambda page: page.name)
def test_the_html_is_whole_and_fetches_nothing(page: Page) -> None:
    text = filled(pages.html(page))
    tags = Tags(text)
    assert tags.open == []
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import|//", text)
    assert "prefers-color-scheme: dark" in text
    assert page.title in text
    assert ("a.localhost" in text) is page.names_host


class Tags(HTMLParser):
    """The tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("page", pages.ALL, ids=lambda page: page.name)
def test_the_envelope_is_the_contracts(page: Page) -> None:
    body = json.loads(filled(pages.envelope(page)))
    assert body["success"] is False
    assert body["code"] == page.code
    assert body["message"].startswith(page.text)
    assert body.get("data") == ({"host": "a.localhost"} if page.names_host else None)


def test_markup_in_a_text_stays_text() -> None:
    page = replace(pages.STOPPED, title="<b>&\"'%[src]", text='</p><script>%[var(txn.route)] 100% \\ "')
    text = filled(pages.html(page))
    assert "<script" not in text
    assert "<b>" not in text
    assert "%[src]" in text
    assert json.loads(filled(pages.envelope(page)))["message"].startswith(page.text)


def test_every_state_without_an_app_has_a_page() -> None:
    states = {state.value for state in RouteState} - {RouteState.OPEN.value}
    assert {page.name for page in pages.NOT_OPEN} == states | {pages.UNHEARD.name, pages.FULL.name}
