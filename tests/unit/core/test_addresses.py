"""Public and denied addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from builderd.core import addresses
from builderd.core.addresses import (
    a_labels,
    embedded_ipv4,
    in_any_network,
    is_public,
    network_of,
    parse,
    refusal,
    shown,
)

NON_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254
169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255
198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 168.63.129.16 100.100.100.200 :: ::1
::7f00:1 fe80::1 febf::1 fec0::1 fc00::1 fd00:ec2::254 fdff::1 ff02::1 100::1 2001::1 2001:db8::1 2001:10::1
2001:0:4136:e378::1 3fff::1 5f00::1 64:ff9b:1::1 4000::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b::10.0.0.1
2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe::
"""

PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 172.15.255.255
172.32.0.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 2606:4700:4700::1111
2a00:1450:4001::1 2001:4860:4860::8888 64:ff9b::8.8.8.8 ::ffff:8.8.8.8 2002:808:808::1
"""


@pytest.mark.parametrize("address", NON_PUBLIC.split())
def test_embedded_private_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC.split())
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_an_address_that_carries_another_leads_to_that() -> None:
    assert str(embedded_ipv4(ip_address("64:ff9b::10.1.2.3"))) == "10.1.2.3"
    assert str(embedded_ipv4(ip_address("2002:a01:203::9"))) == "10.1.2.3"
    assert embedded_ipv4(ip_address("2606:4700::1")) is None
    assert embedded_ipv4(ip_address("10.1.2.3")) is None


def test_networks_of_the_other_version_hold_nothing() -> None:
    networks = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert in_any_network(ip_address("10.1.1.1"), networks)
    assert in_any_network(ip_address("fd00::1"), networks)
    assert not in_any_network(ip_address("::ffff:0:1"), networks)


def test_resolv_conf_formats_are_read() -> None:
    assert str(parse("fe80::1%eth0")) == "fe80::1"
    assert parse("example.com") is None


def test_sandboxes_are_kept_from_all_non_public_networks_but_those_for_documentation() -> None:
    assert set(addresses.NON_PUBLIC) - set(addresses.NOT_FOR_SANDBOXES) == set(addresses.DOCUMENTATION)


def test_an_ipv6_network_counts_as_one_address() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1%eth0") == "2001:db8::/64"
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("") == ""


@pytest.mark.parametrize(
    ("typed", "host"),
    [
        ("shop.example.com", "shop.example.com"),
        ("SHOP.Example.COM.", "shop.example.com"),
        ("example.com", "example.com"),
        ("a.b.c.d.example.com", "a.b.c.d.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("shop。example。com", "shop.example.com"),
        # A look-alike is another name, and is shown as what it is.
        ("\u0430pple.com", "xn--pple-43d.com"),
        (f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}", f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}"),
    ],
)
def test_a_name_is_stored_in_a_labels(typed: str, host: str) -> None:
    assert a_labels(typed) == host
    assert a_labels(shown(host)) == host


@pytest.mark.parametrize(
    "typed",
    [
        "",
        ".",
        "..",
        "localhost",
        "com",
        "shop.example.com:443",
        "https://shop.example.com",
        "shop.example.com/path",
        "user@shop.example.com",
        " shop.example.com",
        "shop.example.com ",
        "shop example.com",
        "shop.example.com\n",
        "shop\0.example.com",
        "shop..example.com",
        ".example.com",
        "-shop.example.com",
        "shop-.example.com",
        "shop_1.example.com",
        "<script>alert(1)</script>.example.com",
        "shop'\".example.com",
        "${jndi}.example.com",
        "203.0.113.7",
        "1.2.3",
        "[2001:db8::1]",
        "2001:db8::1",
        f"{'a' * 64}.example.com",
        f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 62}",
        "a." * 200 + "com",
        "xn--.example.com",
        "xn--a.example.com",
        "xn--zzzzzzzzzz99999.example.com",
        "a\u202eb.example.com",
        "\ud800.example.com",
    ],
)
def test_invalid_host_name_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="must"):
        a_labels(typed)


@pytest.mark.parametrize(
    "typed", ["*", "*.example.com", "*.BÜCHER.example.", "*.*.example.com", "shop.*.example.com", "*。example。com"]
)
def test_a_wildcard_is_refused_with_what_to_do(typed: str) -> None:
    with pytest.raises(ValueError, match="must not be a wildcard: add each host by its own name"):
        a_labels(typed)


def test_both_forms_are_shown() -> None:
    assert shown("xn--bcher-kva.example") == "bücher.example"
    assert shown("shop.example.com") == "shop.example.com"
    assert shown("xn--a.example") == "xn--a.example"


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "apps.example.com",
        "x.apps.example.com",
        "a.localhost",
        "printer.local",
        "db.internal",
    ],
)
def test_hosts_of_the_service_and_of_no_public_dns_are_refused(host: str) -> None:
    assert refusal(host, {"api.example.com"}, "apps.example.com")


def test_any_other_host_is_free() -> None:
    assert refusal("myapps.example.com", {"api.example.com"}, "apps.example.com") is None
    assert refusal("example.com", {"api.example.com"}, "apps.example.com") is None
