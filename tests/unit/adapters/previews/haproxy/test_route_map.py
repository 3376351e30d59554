"""Routes: what the next service reads from the proxy, and addresses that are reserved or paused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builderd.adapters.previews.haproxy.runtime_api import RouteMap, decode, encode
from builderd.domain.ids import BuilderId, TenantId, new_id, secret_hash
from builderd.domain.previews import Address, Route, RouteState

OPEN = Route("a.localhost", RouteState.OPEN, Address("10.0.0.1", 8000))
PRIVATE = Route("b.localhost", RouteState.OPEN, Address("fd00::1", 1), token_hash=secret_hash("x"))
STOPPED = Route("c.localhost", RouteState.STOPPED, builder_id=BuilderId(new_id()), owner_hash=secret_hash("y"))
LONGEST = Route(
    ".".join(["x" * 63] * 3 + ["x" * 61]),
    RouteState.OPEN,
    Address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    token_hash="f" * 64,
    builder_id=BuilderId(new_id()),
    tenant_id=TenantId(new_id()),
)
ALL = (OPEN, PRIVATE, STOPPED, LONGEST)


@pytest.mark.parametrize(
    "route", [*ALL, *(replace(one, h2c=True) for one in (OPEN, PRIVATE, LONGEST))], ids=lambda route: route.host[:5]
)
def test_a_route_survives_being_written_down(route: Route) -> None:
    value = encode(route)
    assert decode(route.host, value) == route
    assert not set(value) & set(" ;\n\t#<\"'\\")


@pytest.mark.parametrize(
    "value",
    [
        *("open|h2c|10.0.0.1|80|-|-", "stopped|h2c|-|-|-|-|h2c"),
        *("stopped|public|-|-|-|-|-|x", "stopped|public|-|-|-|-|-|-", "stopped|public|-|-|-|-|-|x|x"),
        *("", "open", "open|public|10.0.0.1|8000|-", "open|public|10.0.0.1|8000|-|-|-", "shut|public|-|-|-|-"),
        *(
            "open|public|-|-|-|-",
            "stopped|public|10.0.0.1|80|-|-",
            "open|secret|10.0.0.1|80|-|-",
            "open|private|10.0.0.1|80|-|-",
        ),
        *(
            "open|public|10.0.0.1|http|-|-",
            "open|public|10.0.0.1|0|-|-",
            "open|public|host|80|-|-",
            "stopped|public|-|-|-|x",
        ),
    ],
)
def test_malformed_line_is_not_a_route(value: str) -> None:
    with pytest.raises(ValueError):
        decode("a.localhost", value)


def test_address_of_an_open_route_is_given_to_no_other_app() -> None:
    first, second = "10.0.0.1", "10.0.0.2"
    other = Route("other.localhost", RouteState.OPEN, Address(first, 1))
    routes = RouteMap({})
    assert not routes.is_reserved(first)
    routes.put(OPEN)
    routes.put(other)
    routes.put(replace(OPEN, destination=Address(second, 8000)))
    assert routes.is_reserved(first), "the other route leads there"
    routes.put(Route(other.host, RouteState.STOPPED))
    routes.remove(OPEN.host)
    assert (routes.is_reserved(first), routes.is_reserved(second)) == (False, False)
    routes.put(OPEN)
    assert RouteMap(routes.values()).is_reserved(first), "also of routes that an earlier service left"
