"""Contract of every implementation of previews."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from tests.fakes.previews import FakePreviews

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import BuilderId, new_id, secret_hash
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.model import Address, DomainAlias, Route, RouteState
from builderd.previews.port import Previews

#: Against hanging only.
PATIENCE = 30

OPEN = Route("app-1a2b3c4d.localhost", RouteState.OPEN, Address("127.0.0.1", 8000))
PRIVATE = Route(
    "secret-1a2b3c4d.localhost",
    RouteState.OPEN,
    Address("127.0.0.2", 65535),
    token_hash=secret_hash("token"),
    builder_id=BuilderId(new_id()),
)
OWNED = Route("app.localhost", RouteState.FAILED, builder_id=BuilderId(new_id()), owner_hash=secret_hash("token"))


async def test_route_is_active_once_put_returns(previews: Previews) -> None:
    await previews.put(OPEN)
    assert await previews.get(OPEN.host) == OPEN


async def test_every_field_of_a_route_is_stored(previews: Previews) -> None:
    for route in (PRIVATE, OWNED, replace(PRIVATE, h2c=True), replace(OPEN, h2c=True)):
        await previews.put(route)
        assert await previews.get(route.host) == route


async def test_unknown_host_has_no_route(previews: Previews) -> None:
    assert await previews.get("nobody.localhost") is None


async def test_put_replaces_the_route_of_a_host(previews: Previews) -> None:
    for state in (RouteState.STARTING, RouteState.STOPPED, RouteState.FAILED, RouteState.JOB):
        await previews.put(OPEN)
        closed = Route(OPEN.host, state)
        await previews.put(closed)
        assert await previews.get(OPEN.host) == closed


async def test_remove_deletes_only_its_route(previews: Previews) -> None:
    await previews.put(OPEN)
    await previews.put(PRIVATE)
    await previews.remove(OPEN.host)
    assert await previews.routes() == {PRIVATE.host: PRIVATE}


async def test_remove_of_a_missing_route_is_no_error(previews: Previews) -> None:
    await previews.remove("nobody.localhost")
    await previews.remove("no host name; at all\n")
    assert await previews.routes() == {}


async def test_malformed_host_has_no_route(previews: Previews) -> None:
    await previews.put(OPEN)
    assert await previews.get(f"{OPEN.host}\n") is None
    assert await previews.get("") is None


async def test_restart_keeps_the_routes(previews: Previews) -> None:
    await previews.put(OPEN)
    await previews.start()
    assert await previews.ready()
    assert await previews.routes() == {OPEN.host: OPEN}


async def test_activity_is_empty_at_first(previews: Previews) -> None:
    await previews.put(OPEN)
    assert await previews.activity() == {}


async def test_down_ends_the_previews_and_removes_routes(previews: Previews) -> None:
    await previews.put(OPEN)
    await previews.down()
    await previews.down()
    assert not await previews.ready()
    await previews.start()
    assert await previews.routes() == {}


async def test_put_after_down_is_refused(previews: Previews) -> None:
    await previews.down()
    with pytest.raises(EngineUnavailable):
        await previews.put(OPEN)
    with pytest.raises(EngineUnavailable):
        await previews.activity()


async def test_killed_proxy_is_restarted_with_its_routes(previews: Previews) -> None:
    route = OWNED
    await previews.put(route)
    keeping = asyncio.create_task(previews.supervise())
    await asyncio.sleep(0.05)
    try:
        for _ in range(2):
            kill_proxy(previews)
            async with asyncio.timeout(PATIENCE):
                while not await previews.ready():
                    await asyncio.sleep(0.01)
            assert await previews.get(route.host) == route
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def kill_proxy(previews: Previews) -> None:
    if isinstance(previews, FakePreviews):
        previews.break_down()
        return
    assert isinstance(previews, HaproxyPreviews)
    files = previews._files
    os.kill(int(files.pid.read_text()), signal.SIGKILL)


DOMAIN = DomainAlias("shop.example.com", OPEN.host)


async def test_domains_are_listed_until_they_are_removed(previews: Previews) -> None:
    await previews.put_domain(DOMAIN)
    await previews.put_domain(DOMAIN)
    assert await previews.domains() == {DOMAIN.host: (OPEN.host, None)}
    moved = DomainAlias(DOMAIN.host, PRIVATE.host)
    await previews.put_domain(moved)
    assert await previews.domains() == {DOMAIN.host: (PRIVATE.host, None)}
    for _ in range(2):
        await previews.remove_domain(DOMAIN.host)
    assert await previews.domains() == {}


async def test_restart_keeps_domains_and_down_removes_them(previews: Previews) -> None:
    await previews.put_domain(DOMAIN)
    await previews.start()
    assert await previews.domains() == {DOMAIN.host: (OPEN.host, None)}
    await previews.down()
    with pytest.raises(EngineUnavailable):
        await previews.put_domain(DOMAIN)
    await previews.start()
    assert await previews.domains() == {}


async def test_a_wildcard_certificate_is_put_any_number_of_times(previews: Previews) -> None:
    for _ in range(2):
        await previews.put_wildcard("certificate")


async def test_challenges_are_put_and_removed_any_number_of_times(previews: Previews) -> None:
    for _ in range(2):
        await previews.put_challenge("token", "token.thumbprint")
    for _ in range(2):
        await previews.remove_challenge("token")


@pytest.mark.parametrize(
    "host", ["", "UPPER.example", "a b.example", "x\n.example", "ü.example", "*.a.example", "a." * 127 + "com"]
)
def test_a_host_that_is_none_becomes_no_domain(host: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        DomainAlias(host, OPEN.host)
