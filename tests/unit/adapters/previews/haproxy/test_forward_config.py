"""The configuration of a standby's proxy is one that HAProxy takes, with the ports and the limits that were set."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.previews.certificates import write_certificate

from builderd.adapters.previews.haproxy import config, listed_config, pages
from builderd.adapters.previews.haproxy.config import Host
from builderd.adapters.previews.haproxy.forward_config import ForwardOptions, render
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.bootstrap.passing_on import CALM_INTERVAL, DIRECT_VISIT_SECONDS
from builderd.domain.route_list import (
    CLOSED_AFTER,
    DIRECT_LEASE_SECONDS,
    DIRECT_PROXY_SECONDS,
    DIRECT_SECONDS,
    FIRST_ADDRESS_AFTER,
    FIRST_CLOSE_AFTER,
    LEASE_SECONDS,
)

HERE = Host(max_connections=1000)
FILES = ProxyFiles(Path("/data/standby"))
PLAIN = ForwardOptions(ProxyOptions(), 8080, 8022, "ab" * 32)


@pytest.mark.haproxy
@pytest.mark.parametrize("directory", ["plain", "with a blank", "percent%[src]", "back\\slash"])
@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        replace(PLAIN, ssh_port=None),
        replace(PLAIN, proxy=ProxyOptions(host="::", tls_port=443, address_connections=0)),
        replace(PLAIN, proxy=ProxyOptions(host="0.0.0.0", trusted_proxies=(ip_network("10.0.0.0/8"),))),
    ],
)
def test_haproxy_takes_the_configuration_of_a_standby(tmp_path: Path, options: ForwardOptions, directory: str) -> None:
    assert_taken(options, tmp_path / directory, HERE)


@pytest.mark.haproxy
@pytest.mark.root
def test_haproxy_takes_the_user_of_a_standby(tmp_path: Path) -> None:
    assert_taken(PLAIN, tmp_path, Host(1000, user="nobody"))


def assert_taken(options: ForwardOptions, directory: Path, host: Host) -> None:
    files = ProxyFiles(directory)
    for folder in (files.pages, files.jail):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.documents().items():
        (files.pages / name).write_text(text)
    files.routes.write_text("a.localhost open|public|10.0.0.1|8000|-|-\n")
    files.config.write_text(render(options, files, host).text)
    checked = subprocess.run(
        ("/usr/sbin/haproxy", "-c", "-f", str(files.config)), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr, checked.stderr


def test_port_that_speaks_tls_alone_is_passed_on_without_a_look_at_it(tmp_path: Path) -> None:
    pem = tmp_path / "own.pem"
    write_certificate(pem, "test")
    text = render(replace(PLAIN, proxy=ProxyOptions(certificate=pem)), FILES, HERE).text
    assert "switch-mode" not in text
    assert "direct" not in text
    assert str(pem) not in text, "TLS ends at the service that works"


def test_every_port_has_the_limit_of_connections_by_address() -> None:
    options = replace(PLAIN, proxy=ProxyOptions(tls_port=8443, address_connections=7))
    text = render(options, FILES, HERE).text
    assert text.count("tcp-request connection reject if { sc1_conn_cur gt 7 }") == len(options.services) == 4
    assert text.count("bind ") == 4


def test_secret_is_in_the_configuration_alone() -> None:
    assert PLAIN.secret in render(PLAIN, FILES, HERE).text
    assert PLAIN.secret not in repr(PLAIN)
    assert render(PLAIN, FILES, HERE).digest != render(replace(PLAIN, secret="cd" * 32), FILES, HERE).digest


def test_health_of_a_service_that_was_killed_is_known_at_once() -> None:
    text = render(PLAIN, FILES, HERE).text
    own = text[text.index("backend own") :]
    assert "retries 0" in own[: own.index("\nfrontend")]


def test_list_of_routes_serves_plain_http_alone(tmp_path: Path) -> None:
    pem = tmp_path / "own.pem"
    write_certificate(pem, "test")
    for proxy, is_served in (
        (ProxyOptions(), True),
        (ProxyOptions(trusted_proxies=(ip_network("10.0.0.0/8"),)), True),
        (ProxyOptions(certificate=pem), False),
        (ProxyOptions(tls_port=8443), False),
    ):
        options = replace(PLAIN, proxy=proxy)
        text = render(options, FILES, HERE).text
        assert options.serves_list is is_served
        assert ("server listed" in text) is ("frontend listed" in text) is is_served


def test_visits_of_the_list_have_the_rules_of_the_service_that_works() -> None:
    text = render(PLAIN, FILES, HERE).text
    rules = f"{config.forward_rules(PLAIN.proxy)}\n{config.answer_rules()}"
    for line in filter(None, map(str.strip, rules.splitlines())):
        assert text.count(f"    {line}\n") == len(listed_config.APPS) == 4


def test_no_address_of_an_app_is_dialled_twice_for_a_request() -> None:
    listed, service = render(PLAIN, FILES, HERE).text, config.render(PLAIN.proxy, FILES, HERE).text
    assert "retry-on" not in listed + service
    for text, names in ((listed, ["listed"]), (service, ["fast", "full"])):
        found = [part for part in text.split("\nbackend ") if part.startswith(tuple(f"{name}_" for name in names))]
        assert len(found) == (4 if text is listed else 6)
        assert all("    retries 0\n" in part for part in found)


def test_ports_leave_room_for_the_connection_behind_each_visitor() -> None:
    """Otherwise it waits for those in front at the limit of all connections, and they for it."""
    text = render(replace(PLAIN, proxy=ProxyOptions(address_connections=100)), FILES, HERE).text
    everything, api, http, ssh = map(int, re.findall(r"^    maxconn (\d+)$", text, re.MULTILINE))
    assert (everything, api, http, ssh) == (1000, 250, 333, 83)
    assert api + 2 * http + ssh <= everything
    small = render(PLAIN, FILES, Host(max_connections=200)).text
    assert f"sc1_conn_cur gt {200 // 3 // config.ADDRESS_PART} " in small
    tls = replace(PLAIN, proxy=ProxyOptions(tls_port=8443))
    assert render(tls, FILES, HERE).text.count("maxconn") == 1


def test_no_list_is_used_any_more_when_the_next_service_gives_its_first_address() -> None:
    """Not even by a proxy that was allowed to at the last moment, on a machine whose clock is set back then."""
    text = render(PLAIN, FILES, HERE).text
    allowed, directly = re.findall(r"stick-table .* expire (\d+) store gpt0", text)
    dials = re.search(r"timeout connect (\d+)s", text)
    assert dials is not None
    assert LEASE_SECONDS + int(allowed) / 1000 + int(dials[1]) < FIRST_ADDRESS_AFTER
    assert 2 * int(directly) / 1000 == 2 * DIRECT_PROXY_SECONDS <= DIRECT_SECONDS < CLOSED_AFTER
    assert DIRECT_LEASE_SECONDS + CLOSED_AFTER < FIRST_CLOSE_AFTER
    # Of a standby that answers no more: its visits have their way until the next look ends them.
    assert DIRECT_LEASE_SECONDS + DIRECT_VISIT_SECONDS + CALM_INTERVAL < FIRST_ADDRESS_AFTER
