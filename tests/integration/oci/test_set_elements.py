"""Elements of nf_tables sets by netlink, seen by nft; the kernel's answers where one cannot be set."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from builderd.adapters.engines.oci.network import set_elements
from builderd.adapters.engines.oci.network.network import Egress, Network
from builderd.adapters.engines.oci.network.slots import Addresses
from builderd.domain.errors import EngineUnavailable

pytestmark = pytest.mark.root

TABLE = "builderd_test_elements"
RULES = f"""table inet {TABLE} {{
    map shares {{ type ipv4_addr : verdict; }}
    set flows {{ type ipv4_addr; size 2048; flags dynamic; }}
    chain share_0 {{ }}
    chain share_1 {{ }}
}}
"""


def nft(*words: str, text: str = "") -> str:
    return subprocess.run(["nft", *words], input=text, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def table() -> Iterator[str]:
    nft("-f", "-", text=RULES)
    yield TABLE
    nft("delete", "table", "inet", TABLE)


def elements(name: str) -> list[str]:
    kind = "map" if name == "shares" else "set"
    listed = nft("list", kind, "inet", TABLE, name).partition("elements = {")[2].partition("}")[0]
    return sorted(" ".join(one.split()) for one in listed.split(",") if one.strip())


def test_addresses_are_sent_to_chains_and_deleted_again(table: str) -> None:
    set_elements.send_to_chains(table, "shares", {"10.1.2.3": "share_0", "10.1.2.4": "share_1"})
    set_elements.send_to_chains(table, "shares", {"10.1.2.3": "share_0"})
    assert elements("shares") == ["10.1.2.3 : goto share_0", "10.1.2.4 : goto share_1"]
    assert set_elements.delete(table, "shares", "10.1.2.3")
    assert elements("shares") == ["10.1.2.4 : goto share_1"]


def test_a_counted_address_is_deleted_with_its_count(table: str) -> None:
    nft("add", "element", "inet", table, "flows", "{ 10.1.2.3 ct count over 5 }")
    nft("add", "element", "inet", table, "flows", "{ 10.1.2.4 ct count over 5 }")
    assert set_elements.delete(table, "flows", "10.1.2.3")
    assert elements("flows") == ["10.1.2.4 ct count over 5"]


def test_as_many_as_a_service_has_are_sent_at_once(table: str) -> None:
    many = {str(IPv4Address("10.1.0.0") + number): f"share_{number % 2}" for number in range(2048)}
    set_elements.send_to_chains(table, "shares", many)
    assert elements("shares") == sorted(f"{ip} : goto {chain}" for ip, chain in many.items())


@pytest.mark.parametrize(("name", "ip"), [("shares", "10.9.9.9"), ("gone", "10.1.2.3")])
def test_deletion_of_a_missing_element_returns_false(table: str, name: str, ip: str) -> None:
    assert not set_elements.delete(table, name, ip)
    assert not set_elements.delete("no_such_table", name, ip)


def test_refused_elements_raise_and_change_nothing(table: str) -> None:
    set_elements.send_to_chains(table, "shares", {"10.1.2.3": "share_0"})
    with pytest.raises(FileExistsError):
        set_elements.send_to_chains(table, "shares", {"10.1.2.4": "share_1", "10.1.2.3": "share_1"})
    with pytest.raises(FileNotFoundError):
        set_elements.send_to_chains(table, "shares", {"10.1.2.5": "no_such_chain"})
    assert elements("shares") == ["10.1.2.3 : goto share_0"]


def test_a_share_that_netlink_refuses_is_given_by_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(set_elements, "send_to_chains", refuse)
    monkeypatch.setattr(Network, "_apply", staticmethod(applied.append))
    network = Network("0123abcd", Addresses(IPv4Network("10.64.8.0/21")), Egress(8080))
    network.share_ports({"10.1.2.3": "acme"})
    assert applied == ["add element inet builderd_0123abcd shares { 10.1.2.3 : goto share_0 }\n"]
    monkeypatch.setattr(Network, "_apply", staticmethod(lambda _: (_ for _ in ()).throw(EngineUnavailable("refused"))))
    network.share_ports({"10.1.2.4": "acme"})
