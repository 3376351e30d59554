"""Access to private previews requires the token, no app sees it, and others learn nothing."""

from __future__ import annotations

import pytest
from tests.previews.proxy import TOKEN, App, Proxy, new_host
from tests.previews.visitor import Answer

from builderd.core.ids import secret_hash
from builderd.previews.model import Route, RouteState

pytestmark = pytest.mark.haproxy

HASH = secret_hash(TOKEN)
COOKIE = "builderd_service_token"
WEBSOCKET = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {'A' * 22}==",
)
OTHERS = "bds_the-token-of-a-neighbour"


@pytest.mark.parametrize(
    "lines",
    [
        ("X-Service-Token:",),
        ("X-Service-Token: wrong",),
        (f"X-Service-Token: {TOKEN.upper()}",),
        (f"X-Service-Token: {TOKEN}x",),
        (f"X-Service-Token: {TOKEN[:-1]}",),
        (f"X-Service-Token: {HASH}",),
        (f"X-Service-Token: {TOKEN},{TOKEN}",),
        (f"X-Service-Token: {TOKEN} {TOKEN}",),
        ("X-Service-Token: wrong", "X-Service-Token: wrong again"),
        (f"X_Service_Token: {TOKEN}",),
        (f"X-Service-Token : {TOKEN}",),
        (f"Authorization: Bearer {TOKEN}",),
        (f"Cookie: {COOKIE}=wrong",),
        (f"Cookie: {COOKIE}={HASH}",),
        (f"Cookie: {COOKIE.upper()}={TOKEN}",),
        (f"Cookie: x{COOKIE}={TOKEN}",),
        (f"Cookie: a={COOKIE}={TOKEN}",),
        (f'Cookie: a="b; {COOKIE}={TOKEN}"',),
        (f"Cookie: __Host-{COOKIE}=wrong",),
        (f"Cookie: {COOKIE}",),
        (f"X-Forwarded-Host: {TOKEN}",),
        ("X-Service-Token: -",),
    ],
)
def test_wrong_token_is_401(proxy: Proxy, app: App, lines: tuple[str, ...]) -> None:
    answer = proxy.visitor.get(proxy.open(app, private=True), "/head", *lines)
    assert answer.status in (400, 401)


@pytest.mark.parametrize(
    "query",
    [
        *("service_token=", "service_token", "service_token=wrong", f"service_token={HASH}", f"SERVICE_TOKEN={TOKEN}"),
        *(
            f"xservice_token={TOKEN}",
            f"a=service_token={TOKEN}",
            f"service_token[]={TOKEN}",
            f"service_token%3D{TOKEN}",
        ),
        f"service_token=wrong&service_token={TOKEN}",
    ],
)
def test_query_without_the_token_is_401(proxy: Proxy, app: App, query: str) -> None:
    answer = proxy.visitor.get(proxy.open(app, private=True), f"/head?{query}")
    assert answer.status == 401
    assert answer.header("set-cookie") is None


def test_token_opens_only_its_own_preview(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    theirs = proxy.put(Route(new_host(), RouteState.STOPPED, token_hash=secret_hash(OTHERS))).host
    for entry in (f"X-Service-Token: {OTHERS}", f"Cookie: {COOKIE}={OTHERS}"):
        assert proxy.visitor.get(host, "/head", entry).status == 401
        assert proxy.visitor.get(theirs, "/head", entry).status == 503
    assert proxy.visitor.get(host, f"/head?service_token={OTHERS}").status == 401


def test_public_preview_gives_no_owner_rights_without_token(proxy: Proxy) -> None:
    host = proxy.put(Route(new_host(), RouteState.FAILED)).host
    for token in ("-", "", TOKEN):
        assert "It is yours" not in proxy.visitor.browse(host, "/", f"X-Service-Token: {token}").text
        assert proxy.visitor.get(host, f"/?service_token={token}").status == 503


# A stranger learns nothing


@pytest.mark.parametrize("accept", ["Accept: text/html", "Accept: application/json", "Accept: */*"])
def test_401_does_not_reveal_the_app_state(proxy: Proxy, app: App, accept: str) -> None:
    hosts = [
        proxy.open(app, private=True),
        *(proxy.closed(state, private=True) for state in RouteState if state != "open"),
    ]
    answers = {(answer.status, tuple(answer.headers), answer.body) for answer in _all(proxy, hosts, accept)}
    assert len(answers) == 1
    assert answers.pop()[0] == 401


def _all(proxy: Proxy, hosts: list[str], accept: str) -> list[Answer]:
    return [proxy.visitor.get(host, "/drop", accept) for host in hosts]


def test_401_page_does_not_name_the_builder(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    assert host not in proxy.visitor.browse(host).text
    assert host not in proxy.visitor.get(host).text


def test_unauthorized_upload_does_not_reach_the_app(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    request = f"POST /exit HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    assert proxy.visitor.send(request.encode()).status == 401
    assert app.process.poll() is None


# The token stays with the platform


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    "lines",
    [
        (f"X-Service-Token: {TOKEN}",),
        (f"X-Service-Token: {TOKEN}", f"X-Service-Token: {TOKEN}"),
        ("X-Service-Token: wrong", f"x-service-token: {TOKEN}"),
        (f"X-Service-Token: {TOKEN}", "X-Service-Token: wrong"),
        (f"X-Service-Token: {TOKEN}", f"X_Service_Token: {TOKEN}", f"X-Service_Token: {TOKEN}"),
        (f"Cookie: {COOKIE}={TOKEN}",),
        (f"Cookie: {COOKIE}={TOKEN}; {COOKIE}={TOKEN}; {COOKIE}={TOKEN}",),
        (f"Cookie: a=b;{COOKIE}={TOKEN};c=d",),
        (f"Cookie: a=b,{COOKIE}={TOKEN},c=d",),
        (f"Cookie:  {COOKIE} = {TOKEN} ; a=b",),
        (f"Cookie: {COOKIE}={TOKEN}; __Host-{COOKIE}={TOKEN}",),
        (f"Cookie: {COOKIE}=planted; {COOKIE}={TOKEN}; {COOKIE}=planted",),
        (f"Cookie: a=b\t;\t{COOKIE}={TOKEN}",),
        (f'Cookie: {COOKIE}={TOKEN}; a="x',),
    ],
)
def test_token_is_removed_from_app_requests(proxy: Proxy, app: App, lines: tuple[str, ...], private: bool) -> None:
    answer = proxy.visitor.get(proxy.open(app, private=private), "/head", *lines)
    assert answer.status == 200
    assert TOKEN not in answer.text
    assert COOKIE not in answer.text


@pytest.mark.parametrize(
    "lines", [(f"Cookie: {COOKIE}={TOKEN}", "Cookie: a=b"), ("Cookie: a=b", f"Cookie: {COOKIE}={TOKEN}")]
)
def test_token_in_several_cookie_lines_is_removed(proxy: Proxy, app: App, lines: tuple[str, ...]) -> None:
    """HTTP/1.1 has one Cookie line (RFC 6265, 5.4); who sends more is refused before an app sees them."""
    answer = proxy.visitor.get(proxy.open(app, private=True), "/head", *lines)
    assert answer.status == 400
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "query",
    [
        f"service_token={TOKEN}",
        f"a&service_token={TOKEN}&service_token={TOKEN}&b",
        f"a=1;service_token={TOKEN}",
        f"a?service_token={TOKEN}",
        f"&&service_token={TOKEN}&&",
        f"service_token={TOKEN}&service_token=planted",
    ],
)
def test_token_is_removed_from_the_query(proxy: Proxy, app: App, query: str) -> None:
    host = proxy.open(app, private=True)
    answer = proxy.visitor.get(host, f"/head?{query}", "Content-Length: 0", method="POST")
    assert answer.status == 200
    assert "service_token" not in answer.text
    link = proxy.visitor.get(host, f"/head?{query}")
    assert link.status == 302
    assert "service_token" not in (link.header("location") or "")


def test_planted_cookie_does_not_lock_out_the_owner(proxy: Proxy, app: App) -> None:
    """Sibling previews without TLS can set cookies of this name for the parent domain."""
    host = proxy.open(app, private=True)
    planted = "; ".join(f"{COOKIE}=planted{number}" for number in range(20))
    for cookie in (f"{planted}; {COOKIE}={TOKEN}", f"{COOKIE}={TOKEN}; {planted}"):
        answer = proxy.visitor.get(host, "/head", f"Cookie: {cookie}")
        assert answer.status == 200
        assert COOKIE not in answer.text


def test_request_too_large_to_remove_the_token_is_rejected(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    for size in range(12_000, 18_000, 250):
        answer = proxy.visitor.get(
            host,
            "/head",
            f"X-Service-Token: {TOKEN}",
            f"Cookie: a={'x' * size}; {COOKIE}={TOKEN}",
            f"X-Forwarded-For: {'1' * 50}",
        )
        assert answer.status in (200, 400, 413, 431, 500)
        assert TOKEN not in answer.text
        if answer.status == 200:
            assert answer.seen["x-forwarded-for"] == ["127.0.0.1"]


# The link


@pytest.mark.parametrize(
    "path", ["//evil.example/", "//evil.example", "///evil.example/", "/\\evil.example/", "/\\/evil.example"]
)
def test_token_link_redirects_only_to_the_own_host(proxy: Proxy, app: App, path: str) -> None:
    from urllib.parse import urljoin

    host = proxy.open(app, private=True)
    answer = proxy.visitor.get(host, f"{path}?service_token={TOKEN}")
    if answer.status == 400:
        return
    location = (answer.header("location") or "").replace("\\", "/")
    assert urljoin(f"http://{host}/", location).startswith(f"http://{host}/")
    assert not location.startswith("//")


@pytest.mark.parametrize("sign", ["%0d%0aSet-Cookie:%20a=b", "%0aX:%20y", "\tX", '"><script>', "';", "%[src]", "%%"])
def test_token_link_cannot_inject_headers(proxy: Proxy, app: App, sign: str) -> None:
    host = proxy.open(app, private=True)
    for target in (f"/{sign}?service_token={TOKEN}", f"/?a={sign}&service_token={TOKEN}"):
        answer = proxy.visitor.get(host, target)
        if answer.status == 400:
            continue
        assert answer.status == 302
        assert sign in (answer.header("location") or "")
        assert len(answer.all("set-cookie")) == 1
        assert answer.all("x") == []


def test_only_the_right_token_sets_the_cookie(proxy: Proxy, app: App) -> None:
    for private in (True, False):
        host = proxy.open(app, private=private)
        answer = proxy.visitor.get(host, "/head?service_token=a;%20Domain=localhost")
        assert answer.header("set-cookie") is None


@pytest.mark.parametrize(
    "lines",
    [
        ("Origin: http://sibling.localhost",),
        ("Origin: http://sibling.localhost:8081", *WEBSOCKET),
        ("Origin: null",),
        ("Origin: http://{host}.sibling.localhost",),
        ("Origin: http://sibling.localhost@{host}",),
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: websocket"),
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Origin: http://sibling.localhost"),
    ],
)
def test_cookie_is_refused_to_requests_of_sibling_pages(proxy: Proxy, app: App, lines: tuple[str, ...]) -> None:
    """A browser sends it along with what a sibling's page asks for: they are one site."""
    host = proxy.open(app, private=True)
    named = [line.format(host=host) for line in lines]
    assert proxy.visitor.get(host, "/head", f"Cookie: {COOKIE}={TOKEN}", *named).status == 401
    assert proxy.visitor.get(host, "/head", f"X-Service-Token: {TOKEN}", *lines[:1]).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Origin: http://{host}",),
        ("Origin: https://{host}:8443", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"),
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate"),
        ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"),
    ],
)
def test_cookie_is_accepted_for_own_pages_and_visits(proxy: Proxy, app: App, lines: tuple[str, ...]) -> None:
    host = proxy.open(app, private=True)
    named = [line.format(host=host) for line in lines]
    assert proxy.visitor.get(host, "/head", f"Cookie: {COOKIE}={TOKEN}", *named).status == 200
