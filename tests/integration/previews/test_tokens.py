"""A private preview opens to its token, in a header, a link or a cookie; and no app sees the token."""

from __future__ import annotations

import pytest
from tests.previews.proxy import TOKEN, App, Proxy
from tests.previews.visitor import Answer

pytestmark = pytest.mark.haproxy

COOKIE = f"builderd_service_token={TOKEN}; Path=/; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [
        ("/?service_token={}", "/"),
        ("/head?service_token={}", "/head"),
        ("/head?a=1&service_token={}&b=%20%2F", "/head?a=1&b=%20%2F"),
        ("/head?service_token={}&a", "/head?a"),
        ("/head?a&service_token={}", "/head?a"),
        ("/a//b/%2e%2e?service_token={}", "/a//b/%2e%2e"),
    ],
)
def test_a_link_turns_into_a_cookie(proxy: Proxy, app: App, asked: str, leads_to: str) -> None:
    answer = proxy.visitor.get(proxy.open(app, private=True), asked.format(TOKEN))
    assert answer.status == 302
    assert answer.header("location") == leads_to
    assert answer.header("set-cookie") == COOKIE
    assert answer.header("cache-control") == "no-store"


def test_token_link_grants_access(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    first = proxy.visitor.get(host, f"/head?service_token={TOKEN}&a=1")
    cookie = (first.header("set-cookie") or "").split(";")[0]
    second = proxy.visitor.get(host, first.header("location") or "", f"Cookie: {cookie}")
    assert second.status == 200
    assert second.json["first"] == "GET /head?a=1 HTTP/1.1"
    assert_unseen(second)


def test_a_token_that_was_replaced_ends_at_once(proxy: Proxy, app: App) -> None:
    from dataclasses import replace

    from tests.previews.proxy import route_to

    from builderd.core.ids import secret_hash

    route = proxy.put(route_to(app, private=True))
    proxy.put(replace(route, token_hash=secret_hash("bds_another")))
    assert proxy.visitor.get(route.host, "/head", f"X-Service-Token: {TOKEN}").status == 401
    assert proxy.visitor.get(route.host, "/head", "X-Service-Token: bds_another").status == 200


def test_a_parameter_of_that_name_is_a_public_apps_own_unless_it_is_the_token(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    answer = proxy.visitor.get(host, "/head?service_token=something-else")
    assert answer.json["first"] == "GET /head?service_token=something-else HTTP/1.1"
    assert proxy.visitor.get(host, f"/head?service_token={TOKEN}").status == 302


def assert_unseen(answer: Answer) -> None:
    assert TOKEN not in answer.text
    assert "x-service-token" not in answer.seen
