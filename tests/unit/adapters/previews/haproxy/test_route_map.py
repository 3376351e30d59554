"""The route map on disk: what HAProxy reads and what the next service reads are the same, whatever happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builderd.adapters.previews.haproxy.route_map import LINE, RouteMap, decode, encode
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


@contextmanager
def opened(path: Path) -> Iterator[RouteMap]:
    routes = RouteMap(path)
    yield routes
    routes.close()


def as_haproxy_reads(path: Path) -> dict[str, str]:
    """A map file as its manual describes it: blank-stripped lines, ``#`` comments, the first entry of a key wins."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, value = line.strip().partition(" ")
            found.setdefault(key, value)
    return found


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
        *("open|public|10.0.0.1|80|-|-|h2c", "open|h2c|10.0.0.1|80|-|-", "stopped|h2c|-|-|-|-|h2c"),
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


def test_stored_routes_are_read_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "routes.map"
    with opened(path) as routes:
        for route in ALL:
            routes.put(route)
        routes.put(Route(OPEN.host, RouteState.FAILED))
        routes.remove(PRIVATE.host)
        routes.remove("nobody.localhost")
        left = dict(routes.routes)
    assert left.keys() == {OPEN.host, STOPPED.host, LONGEST.host}
    with opened(path) as routes:
        assert routes.routes == left
    assert as_haproxy_reads(path) == {host: encode(route) for host, route in left.items()}


def test_tenant_is_added_to_routes_that_an_earlier_version_wrote(tmp_path: Path) -> None:
    tenant = TenantId(new_id())
    with opened(tmp_path / "routes.map") as routes:
        for route in ALL:
            routes.put(route)
        assert set(routes.with_tenant()) == {LONGEST.host}
        routes.put_lost(Route(OPEN.host, RouteState.STARTING, tenant_id=tenant))
        routes.put_lost(Route("new.localhost", RouteState.STARTING, tenant_id=tenant))
        assert routes.routes[OPEN.host] == replace(OPEN, tenant_id=tenant), "it leads where it led"
        assert routes.routes["new.localhost"].state is RouteState.STARTING
    assert as_haproxy_reads(tmp_path / "routes.map")[OPEN.host].endswith(f"|-|{tenant}")


def test_a_line_that_became_free_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "routes.map"
    with opened(path) as routes:
        for number in range(100):
            routes.put(Route(f"n{number}.localhost", RouteState.STOPPED))
            routes.remove(f"n{number}.localhost")
        routes.put(OPEN)
    assert path.stat().st_size == LINE
    with opened(path) as routes:
        routes.remove(OPEN.host)
    with opened(path) as routes:
        routes.put(PRIVATE)
    assert path.stat().st_size == LINE


def test_a_line_is_within_one_page() -> None:
    assert os.sysconf("SC_PAGE_SIZE") % LINE == 0


LINE_OF_OPEN = f"{OPEN.host} {encode(OPEN)}"


@pytest.mark.parametrize(
    ("content", "readable"),
    [
        ("", False),
        ("\n", False),
        ("#\n", False),
        (LINE_OF_OPEN, False),
        (f"{LINE_OF_OPEN}\n", True),
        (f"# an older one\n\n{OPEN.host}    {encode(OPEN)}   \nnonsense\n{STOPPED.host} open|x\n", True),
        (f"{LINE_OF_OPEN:{LINE - 1}}\n{STOPPED.host} open|pub", True),
        (f"{LINE_OF_OPEN:{LINE - 1}}\n{f'{OPEN.host} stopped|public|-|-|-|-':{LINE - 1}}\n", True),
        ("\0" * LINE, False),
        ("\0" * (LINE - 1) + f"\n{LINE_OF_OPEN:{LINE - 1}}\n", True),
        ("é" * 300 + "\n", False),
    ],
)
def test_a_file_of_another_form_is_made_good(tmp_path: Path, content: str, readable: bool) -> None:
    path = tmp_path / "routes.map"
    path.write_text(content)
    expected = {OPEN.host: OPEN} if readable else {}
    with opened(path) as routes:
        assert routes.routes == expected
        routes.put(PRIVATE)
    with opened(path) as routes:
        assert routes.routes == {**expected, PRIVATE.host: PRIVATE}
    assert as_haproxy_reads(path) == {host: encode(route) for host, route in routes.routes.items()}


HOSTS = st.sampled_from([f"h{number}.localhost" for number in range(6)])
CHANGES = st.lists(st.tuples(HOSTS, st.sampled_from([*RouteState, None])), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
def test_after_any_changes_the_file_says_what_the_memory_says(
    tmp_path: Path, changes: list[tuple[str, RouteState | None]]
) -> None:
    path = tmp_path / "routes.map"
    path.unlink(missing_ok=True)
    with opened(path) as routes:
        for host, state in changes:
            if state is None:
                routes.remove(host)
            else:
                routes.put(Route(host, state, OPEN.destination if state is RouteState.OPEN else None))
            assert as_haproxy_reads(path) == {name: encode(route) for name, route in routes.routes.items()}


WRITER = """
import sys
from pathlib import Path
from builderd.adapters.previews.haproxy.route_map import RouteMap
from builderd.domain.previews import Address, Route, RouteState
routes = RouteMap(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    number += 1
    host = f"n{number % 7}.localhost"
    routes.put(Route(host, RouteState.OPEN, Address("10.0.0.1", number % 60000 + 1)))
    routes.put(Route(host, RouteState.STOPPED))
    if number % 3 == 0:
        routes.remove(host)
"""


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path, source = tmp_path / "routes.map", str(Path(__file__).parents[5] / "src")
    for _ in range(5):
        argv = (sys.executable, "-c", WRITER, str(path))
        writer = subprocess.Popen(argv, stdout=subprocess.PIPE, env={"PYTHONPATH": source})
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(50):
            assert path.stat().st_size % LINE == 0
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for line in path.read_text().splitlines():
            assert len(line) == LINE - 1
            if not line.startswith("#"):
                host, _, value = line.strip().partition(" ")
                decode(host, value)


def test_address_of_an_open_route_is_given_to_no_other_app(tmp_path: Path) -> None:
    first, second = "10.0.0.1", "10.0.0.2"
    other = Route("other.localhost", RouteState.OPEN, Address(first, 1))
    with opened(tmp_path / "routes.map") as routes:
        assert not routes.is_reserved(first)
        routes.put(OPEN)
        routes.put(other)
        routes.put(replace(OPEN, destination=Address(second, 8000)))
        assert routes.is_reserved(first), "the other route leads there"
        routes.put(Route(other.host, RouteState.STOPPED))
        routes.remove(OPEN.host)
        assert (routes.is_reserved(first), routes.is_reserved(second)) == (False, False)
        routes.put(OPEN)
    with opened(tmp_path / "routes.map") as routes:
        assert routes.is_reserved(first), "also of routes that an earlier service left"


def test_address_with_a_pause_is_given_to_no_other_app(tmp_path: Path) -> None:
    with opened(tmp_path / "routes.map") as routes:
        routes.put(OPEN)
        for _ in range(2):
            routes.pause("10.0.0.1")
        # The app was stopped and removed while its disk is still copied.
        routes.remove(OPEN.host)
        for _ in range(2):
            assert routes.is_reserved("10.0.0.1")
            routes.resume("10.0.0.1")
        assert not routes.is_reserved("10.0.0.1")


def test_routes_to_a_paused_address_pause_until_the_last_pause_ends(tmp_path: Path) -> None:
    ip, other = "10.0.0.1", Route("other.localhost", RouteState.OPEN, Address("10.0.0.2", 1), h2c=True)
    with opened(tmp_path / "routes.map") as routes:
        for route in (
            OPEN,
            replace(OPEN, host="alias.localhost"),
            other,
            Route("closed.localhost", RouteState.STOPPED),
        ):
            routes.put(route)
        # As often as wanted: it is one host there.
        routes.put(OPEN)
        assert routes.hosts_at(ip) == sorted([OPEN.host, "alias.localhost"])
        assert routes.all_in_force() == routes.routes
        for _ in range(2):
            routes.pause(ip)
        routes.pause("10.0.0.2")
        for _ in range(2):
            assert routes.in_force(OPEN) == replace(OPEN, state=RouteState.PAUSED, destination=None)
            assert routes.all_in_force()[other.host] == Route(other.host, RouteState.PAUSED)
            assert routes.all_in_force()["closed.localhost"].state is RouteState.STOPPED
            assert decode(OPEN.host, encode(routes.in_force(OPEN))).state is RouteState.PAUSED
            moved = replace(OPEN, destination=Address("10.0.0.3", 1))
            assert routes.in_force(moved) == moved
            assert routes.routes[OPEN.host] == OPEN
            routes.resume(ip)
        assert routes.in_force(OPEN) == OPEN
        routes.remove(OPEN.host)
        assert routes.hosts_at(ip) == ["alias.localhost"]
        routes.put(Route("alias.localhost", RouteState.STOPPED))
        assert routes.hosts_at(ip) == []
