"""A sandbox asks servers that it can reach."""

from builderd.adapters.engines.oci.network.resolvers import make_resolv_conf, parse_nameservers

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
