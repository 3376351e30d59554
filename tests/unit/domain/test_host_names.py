"""Host names as users type them."""

from __future__ import annotations

import pytest

from builderd.domain.addresses import a_labels, refusal, shown


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
