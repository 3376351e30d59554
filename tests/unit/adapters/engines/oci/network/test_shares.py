"""Tenants have NAT ports apart, for as long as there are shares, and give them back with their last sandbox."""

from __future__ import annotations

from builderd.adapters.engines.oci.network.nft import FIRST_PORT, SHARES, share_ports
from builderd.adapters.engines.oci.network.shares import PortShares


def test_the_shares_are_ports_apart() -> None:
    ports = [port for share in range(SHARES) for port in share_ports(share)]
    assert len(set(ports)) == len(ports)
    assert min(ports) == FIRST_PORT
    assert max(ports) < 1 << 16


def test_a_tenant_has_one_share_for_all_its_sandboxes() -> None:
    shares = PortShares()
    assigned = shares.assign({"10.0.0.2": "a", "10.0.0.3": "b", "10.0.0.4": "a"})
    assert assigned["10.0.0.2"] == assigned["10.0.0.4"] != assigned["10.0.0.3"]
    assert shares.assign({"10.0.0.5": "a"}) == {"10.0.0.5": assigned["10.0.0.2"]}


def test_tenants_share_only_when_all_shares_are_taken() -> None:
    shares = PortShares()
    assigned = shares.assign({f"10.0.0.{number}": str(number) for number in range(SHARES + 1)})
    assert len(set(assigned.values())) == SHARES
    assert len(set(list(assigned.values())[:SHARES])) == SHARES


def test_a_share_is_free_again_after_the_last_sandbox() -> None:
    shares = PortShares()
    first = shares.assign({"10.0.0.2": "a", "10.0.0.3": "a"})["10.0.0.2"]
    assert shares.release("10.0.0.2")
    assert shares.assign({"10.0.0.4": "b"})["10.0.0.4"] != first
    assert shares.release("10.0.0.3")
    assert not shares.release("10.0.0.3")
    assert shares.assign({"10.0.0.5": "c"})["10.0.0.5"] == first
