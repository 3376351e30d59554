"""Routes hold nothing that could be taken for something else where they are written down."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builderd.builders.model import NAME, name_error
from builderd.core.ids import BuilderId, new_id, secret_hash
from builderd.previews.model import Address, PreviewDomain, Route, RouteState, preview_host

HERE = Address("127.0.0.1", 8000)
HOST = "app-1a2b3c4d.localhost"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "A.localhost",
            "a b",
            "a\n",
            "a\nshow info",
            "a;b",
            "a|b",
            "a%[x]",
            "a<b>",
            '"a"',
            "a\\",
        ),
        *("a/b", "a:80", "a@b", "a_b", "-", "-a", "a-.b", "ä.localhost", "a\0", "#a", "a" * 254),
    ],
)
def test_host_name_must_be_lower_case(host: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        Route(host, RouteState.STOPPED)


@pytest.mark.parametrize("state", [state for state in RouteState if state is not RouteState.OPEN])
def test_only_an_open_route_has_a_destination(state: RouteState) -> None:
    assert Route(HOST, state).destination is None
    with pytest.raises(ValueError, match="8000"):
        Route(HOST, state, HERE)


def test_an_open_route_has_one() -> None:
    assert Route(HOST, RouteState.OPEN, HERE).destination == HERE
    with pytest.raises(ValueError, match="no destination"):
        Route(HOST, RouteState.OPEN)


@pytest.mark.parametrize(
    "address", [Address("localhost", 1), Address("", 1), Address("127.0.0.1 ", 1), Address("1.2.3.4", 0)]
)
def test_a_destination_can_be_dialled(address: Address) -> None:
    with pytest.raises(ValueError):
        Route(HOST, RouteState.OPEN, address)


@pytest.mark.parametrize("digest", ["", "token", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_hash_is_64_hex_characters(digest: str) -> None:
    with pytest.raises(ValueError, match="64"):
        Route(HOST, RouteState.STOPPED, token_hash=digest)
    with pytest.raises(ValueError, match="64"):
        Route(HOST, RouteState.STOPPED, owner_hash=digest)


def test_one_hash_identifies_the_owner() -> None:
    digest = secret_hash("token")
    with pytest.raises(ValueError, match="owner"):
        Route(HOST, RouteState.STOPPED, token_hash=digest, owner_hash=digest)


def test_a_builder_is_named_by_its_id() -> None:
    assert Route(HOST, RouteState.STOPPED, builder_id=BuilderId(new_id())).builder_id
    with pytest.raises(ValueError, match="id"):
        Route(HOST, RouteState.STOPPED, builder_id=BuilderId("../x"))


@pytest.mark.parametrize("name", ["a", "my-api", "x" * 63, "a" * 53 + "-b", "0"])
def test_every_builder_gets_a_host_that_a_route_takes(name: str) -> None:
    host = preview_host(name, BuilderId("1a2b3c4d-0000-4000-8000-000000000000"), "preview.example.com")
    assert Route(host, RouteState.STARTING).host == host
    assert len(host.split(".")[0]) <= 63


@given(st.from_regex(NAME, fullmatch=True).filter(lambda name: name_error(name) is None), st.uuids(version=4))
@example("a" * 53 + "-" * 9 + "b", uuid.UUID("1a2b3c4d-0000-4000-8000-000000000000"))
def test_every_name_makes_one_valid_dns_label(name: str, builder: uuid.UUID) -> None:
    label, _, domain = preview_host(name, BuilderId(str(builder)), "localhost").partition(".")
    assert domain == "localhost"
    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", label)
    assert not label.startswith("xn--")
    assert label.startswith(name[:30].rstrip("-"))
    assert label.endswith(f"-{builder.hex[:8]}")


def test_an_address_is_written_as_it_is_dialled() -> None:
    assert str(Address("10.0.0.2", 80)) == "10.0.0.2:80"
    assert str(Address("fd00::2", 80)) == "[fd00::2]:80"


def test_the_url_leaves_out_the_schemes_own_port() -> None:
    assert PreviewDomain("https", "example.com", None).url(HOST) == f"https://{HOST}/"
    assert PreviewDomain("http", "localhost", 8081).url(HOST) == f"http://{HOST}:8081/"
