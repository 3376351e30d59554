"""Other ports of a preview, and links that open a private one: in a real proxy."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import pytest
from tests.integration.previews.test_life import kill
from tests.previews.proxy import TOKEN, App, Proxy, new_host

from builderd.core.ids import secret_hash
from builderd.previews.model import PreviewLink

pytestmark = pytest.mark.haproxy
LINK = "bdpl_of-a-guest"
OWN = f"X-Service-Token: {TOKEN}"
GUEST = f"X-Service-Token: {LINK}"


def share(proxy: Proxy, host: str, port: int | None = None, seconds: float = 60) -> None:
    link = PreviewLink(secret_hash(LINK), host, port, int(time.time() + seconds))
    give(proxy, link)


def give(proxy: Proxy, *links: PreviewLink) -> None:
    async def load() -> Collection[PreviewLink]:
        return links

    proxy.run(proxy.previews.refresh_links(load))


@pytest.mark.parametrize("private", [False, True])
def test_other_port_wants_the_token_whatever_the_preview_is(
    proxy: Proxy, app: App, neighbour: App, private: bool
) -> None:
    host = proxy.open(app, private=private)
    other = f"{neighbour.port}--{host}"
    assert proxy.visitor.get(other).status == 401
    answer = proxy.visitor.get(other, "/head", OWN)
    assert (answer.status, answer.seen["host"]) == (200, [other])
    assert proxy.visitor.get(other, "/head", OWN, method="POST").status == 200
    assert answer.json["name"] == neighbour.name
    own = proxy.visitor.get(host, "/head", OWN)
    assert own.json["name"] == app.name
    linked = proxy.visitor.get(other, f"/head?service_token={TOKEN}")
    assert (linked.status, linked.header("location")) == (302, "/head")


def test_only_a_port_of_a_known_preview_is_one(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    for asked in (f"65536--{host}", f"0--{host}", f"08--{host}", f"--{host}", f"80---{host}", f"80--{new_host()}"):
        assert proxy.visitor.get(asked, "/head", OWN).status == 404, asked


def test_link_opens_its_preview_alone_until_it_is_revoked(proxy: Proxy, app: App, neighbour: App) -> None:
    host, foreign = proxy.open(app, private=True), proxy.open(neighbour, private=True)
    assert proxy.visitor.get(host, "/head", GUEST).status == 401
    share(proxy, host)
    first = proxy.visitor.get(host, f"/head?service_token={LINK}&a=1")
    assert (first.status, first.header("location")) == (302, "/head?a=1")
    cookie = (first.header("set-cookie") or "").split(";")[0]
    second = proxy.visitor.get(host, "/head?a=1", f"Cookie: {cookie}; b=c")
    assert (second.status, second.seen["cookie"]) == (200, ["b=c"])
    assert "x-service-token" not in proxy.visitor.get(host, "/head", GUEST).seen
    assert proxy.visitor.get(foreign, "/head", GUEST).status == 401
    assert proxy.visitor.get(f"{neighbour.port}--{host}", "/head", GUEST).status == 401
    assert proxy.visitor.get(host, "/head", OWN).status == 200
    give(proxy)
    assert proxy.visitor.get(host, "/head", f"Cookie: {cookie}").status == 401


def test_link_to_a_port_opens_that_port_alone(proxy: Proxy, app: App, neighbour: App) -> None:
    host = proxy.open(app, private=True)
    share(proxy, host, neighbour.port)
    assert proxy.visitor.get(f"{neighbour.port}--{host}", "/head", GUEST).json["name"] == neighbour.name
    assert proxy.visitor.get(f"{app.port}--{host}", "/head", GUEST).status == 401
    assert proxy.visitor.get(host, "/head", GUEST).status == 401


def test_link_ends_by_itself(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    share(proxy, host, seconds=-1)
    assert proxy.visitor.get(host, "/head", GUEST).status == 401


def test_page_of_a_crash_names_the_logs_to_the_owner_alone(proxy: Proxy, make_app: Callable[[str], App]) -> None:
    app = make_app("gone")
    host = proxy.open(app, private=True)
    share(proxy, host)
    app.process.kill()
    app.process.wait()
    assert "logs" not in proxy.visitor.get(host, "/head", GUEST).text
    assert "logs" in proxy.visitor.get(host, "/head", OWN).text


def test_links_outlive_a_killed_proxy(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy().start()
    host = proxy.open(app, private=True)
    share(proxy, host)
    kill(proxy)
    proxy.start()
    assert proxy.visitor.get(host, "/head", GUEST).status == 200
