"""Headers of a browser about the origin of a request decide whether it may change anything."""

from __future__ import annotations

import gzip
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from tests.unit.web.conftest import Pages

from builderd.core.errors import Forbidden
from builderd.web.policy import CONTENT_SECURITY_POLICY, Assets, check_origin
from builderd.web.shown import bars


def connection(method: str, headers: dict[str, str], scheme: str = "https", public_url: str = "") -> HTTPConnection:
    app = Starlette()
    app.state.application = SimpleNamespace(public_url=public_url)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "app": app, "scheme": scheme, "path": "/", "query_string": b"", "headers": raw}
    return HTTPConnection({**scope, **({"method": method} if method else {"type": "websocket"})})


OWN = {"host": "builderd.example.com", "origin": "https://builderd.example.com"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("POST", {**OWN, "sec-fetch-site": "same-origin"}, id="the-page-itself"),
        pytest.param("POST", OWN, id="the-page-in-a-browser-without-fetch-metadata"),
        pytest.param("", {**OWN, "sec-fetch-site": "same-origin"}, id="the-pages-websocket"),
        pytest.param("GET", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, id="the-address-bar"),
        pytest.param(
            "GET",
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
            id="a-link-on-another-site",
        ),
        pytest.param("GET", {}, id="a-program-that-reads"),
    ],
)
def test_the_page_itself_and_plain_visits_pass(method: str, headers: dict[str, str]) -> None:
    check_origin(connection(method, headers))


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("POST", {**OWN, "origin": "https://app.example.com"}, id="an-app-on-a-sibling-host"),
        pytest.param("POST", {"host": OWN["host"], "sec-fetch-site": "same-site"}, id="a-sibling-without-origin"),
        pytest.param("POST", {**OWN, "sec-fetch-site": "cross-site"}, id="another-site-that-lies-about-its-origin"),
        pytest.param("POST", {**OWN, "origin": "null"}, id="a-sandboxed-frame"),
        pytest.param("POST", {"host": OWN["host"]}, id="no-word-of-where-it-comes-from"),
        pytest.param("DELETE", {**OWN, "origin": "https://builderd.example.com:8443"}, id="another-port"),
        pytest.param("", {**OWN, "origin": "https://app.example.com"}, id="a-websocket-of-a-sibling"),
        pytest.param("", {"host": OWN["host"]}, id="a-websocket-without-origin"),
        pytest.param("GET", {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, id="a-read-by-a-sibling"),
        pytest.param("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, id="an-image-elsewhere"),
        pytest.param(
            "GET",
            {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
            id="a-frame-on-a-sibling",
        ),
    ],
)
def test_other_origins_are_refused(method: str, headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        check_origin(connection(method, headers))


@pytest.mark.parametrize(
    ("scheme", "public_url", "passes"),
    [
        ("http", "", False),
        ("ws", "", False),
        ("wss", "", True),
        ("http", "https://builderd.example.com", True),
        ("https", "http://builderd.example.com", False),
        ("http", "https://elsewhere.example.com", False),
    ],
)
def test_an_origin_of_another_scheme_is_refused_unless_a_proxy_ends_tls(
    scheme: str, public_url: str, passes: bool
) -> None:
    with nullcontext() if passes else pytest.raises(Forbidden):
        check_origin(connection("POST", OWN, scheme, public_url))


def test_the_policy_allows_no_inline_code_and_no_other_origin() -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY


async def test_a_file_is_immutable_under_its_hash_and_nowhere_else(pages: Pages) -> None:
    url = Assets().url("app.css")
    answer = await pages.browser.get(url)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "asset:" not in answer.text
    assert Assets().url("recursive.woff2") in answer.text
    for wrong in ("/static/0000000000000000/app.css", "/static/x/../app.py", "/static/x/nothing.css"):
        assert (await pages.browser.get(wrong)).status_code == 404


def test_the_first_page_is_small() -> None:
    """HTML apart, without the font: what the list of builders loads."""
    assets = Assets()
    sizes = {name: len(assets._assets[name].packed or b"") for name in ("app.css", "page.js", "htmx.js", "icons.svg")}
    assert sum(sizes.values()) < 45_000, sizes
    assert gzip.decompress(assets._assets["page.js"].packed or b"") == assets._assets["page.js"].content


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (0, (0.01, 0)),
        (0.01, (0.01, 0)),
        (0.03, (0.04, 0.02, 0)),
        (1.48, (2, 1, 0)),
        (2, (2, 1, 0)),
        (2.01, (4, 2, 0)),
        (731, (1000, 500, 0)),
    ],
)
def test_chart_of_bars_has_round_lines_at_and_above_its_values(most: float, ticks: tuple[float, ...]) -> None:
    assert bars([0, most], 30).ticks == pytest.approx(ticks)
