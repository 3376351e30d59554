"""The network where the kernel cannot do all that is asked of it. The rest is proved on real ones."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Network

import pytest

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.network import conntrack
from builderd.engine.oci.network.allocations import Addresses
from builderd.engine.oci.network.conntrack import NoConntrack
from builderd.engine.oci.network.network import Egress, Network, make_resolv_conf, parse_nameservers


def network(monkeypatch: pytest.MonkeyPatch, refused: str, applied: list[str]) -> Network:
    def apply(rules: str) -> None:
        if refused in rules:
            raise EngineUnavailable("nft refused it")
        applied.append(rules)

    monkeypatch.setattr(Network, "_apply", staticmethod(apply))
    return Network("0123abcd", Addresses(IPv4Network("10.64.8.0/21")), Egress(8080))


def test_a_kernel_that_cannot_count_flows_gets_the_other_rules(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[str] = []
    one = network(monkeypatch, "ct count", applied)
    one._open_firewall(one._policy())
    assert "@near drop" in applied[0]
    assert "cannot count" in caplog.text


def test_missing_firewall_rules_fail_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    one = network(monkeypatch, "@near", [])
    with pytest.raises(EngineUnavailable):
        one._open_firewall(one._policy())


def test_a_kernel_that_cannot_delete_flows_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lack(ip: str) -> int:
        raise NoConntrack("Invalid argument")

    monkeypatch.setattr(conntrack, "forget", lack)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0))
    one = network(monkeypatch, "nothing", [])
    for _ in range(2):
        one.forget("10.64.8.2", abort=True)
    assert caplog.text.count("not deleted, the kernel cannot error=Invalid argument") == 1


TEXT = """\
# made by hand
search example.org
nameserver 127.0.0.53
nameserver 10.1.2.3
nameserver fd00::1
nameserver
nameserver 10.1.2.3
options ndots:2
"""


def test_servers_on_loopback_and_of_ipv6_are_left_out() -> None:
    assert parse_nameservers(TEXT) == ("10.1.2.3",)
    assert parse_nameservers("") == ()


def test_the_search_list_and_the_options_stay() -> None:
    assert make_resolv_conf(("10.1.2.3",), TEXT) == "nameserver 10.1.2.3\nsearch example.org\noptions ndots:2\n"
