"""User input never becomes a command, a line of the map or a part of a page."""

from __future__ import annotations

import pytest
from tests.previews.proxy import App, Proxy

from builderd.core.ids import BuilderId
from builderd.previews.haproxy import runtime_api
from builderd.previews.model import Route, RouteState, preview_host

pytestmark = pytest.mark.haproxy

HOSTILE = (
    *(
        "a; shutdown sessions server apps/kept",
        "a\nshow info",
        "a open|public|127.0.0.1|1|-|-",
        "a\r\nb",
        "a\0b",
        "a <<",
        "a\\",
    ),
    *(
        "<script>alert(1)</script>",
        "%[src]",
        "a|b",
        "#a",
        "@1",
        "-",
        "../routes.map",
        "$HOME",
        '"',
        "'",
        "a b",
        "A",
        "ä",
        "",
    ),
)


@pytest.mark.parametrize("host", HOSTILE)
def test_hostile_host_name_creates_no_route(proxy: Proxy, host: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        Route(host, RouteState.STOPPED)


@pytest.mark.parametrize("host", HOSTILE)
def test_command_for_a_hostile_host_has_no_effect(proxy: Proxy, app: App, host: str) -> None:
    known = proxy.open(app)
    assert proxy.run(proxy.previews.get(host)) is None
    proxy.run(proxy.previews.remove(host))
    assert proxy.visitor.get(known).status == 200


def test_every_valid_builder_name_is_escaped_in_its_page(proxy: Proxy) -> None:
    for name in ("a", "0", "x" * 63, "script", "--".join("ab"), "a-b-c"):
        host = preview_host(name, BuilderId("0123abcd-0000-4000-8000-000000000000"), "localhost")
        proxy.put(Route(host, RouteState.STOPPED))
        assert host in proxy.visitor.browse(host).text


def test_command_sockets_are_not_on_the_network(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    for command in (b"show info\n", b"show map\n", b"@1 show info\n", b"shutdown frontend visitors\n"):
        assert b"Name: HAProxy" not in proxy.visitor.exchange(command)
    assert proxy.visitor.get(host).status == 200


def test_proxy_files_contain_no_secret(proxy: Proxy, app: App) -> None:
    from tests.previews.proxy import TOKEN

    host = proxy.open(app, private=True)
    proxy.visitor.get(host, f"/?service_token={TOKEN}")
    socket, table = proxy.directory / "admin.sock", proxy.directory / "routes.map"
    assert TOKEN not in str(proxy.run(runtime_api.entries(socket, table)))
    assert TOKEN not in table.read_text()
    for command in ("show table activity", "show info", "show errors", "show sess all"):
        assert TOKEN not in proxy.run(runtime_api.ask(socket, command))
