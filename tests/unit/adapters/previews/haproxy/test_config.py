"""The configuration is one that HAProxy takes, says what was set, and is known by its digest."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.previews.certificates import write_certificate

from builderd.adapters.previews.haproxy import pages, pause
from builderd.adapters.previews.haproxy.config import Host, render
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions, Timeouts

HERE = Host(max_connections=1000)
FILES = ProxyFiles(Path("/data/preview"))
PLAIN = ProxyOptions()
PROXIED = ProxyOptions(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")))


@pytest.mark.haproxy
@pytest.mark.parametrize("directory", ["plain", "with a blank", "semi;colon", "hash#", "percent%[src]", "back\\slash"])
@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        PROXIED,
        ProxyOptions(host="0.0.0.0", port=443, threads=1, max_connections=10),
        ProxyOptions(host="::", timeouts=Timeouts(tunnel=1)),
        ProxyOptions(host="localhost", api_url="https://builders.example.com:8443"),
    ],
)
def test_haproxy_takes_it(tmp_path: Path, options: ProxyOptions, directory: str) -> None:
    assert_taken(options, tmp_path / directory, HERE)


@pytest.mark.haproxy
def test_haproxy_takes_a_certificate(tmp_path: Path) -> None:
    pem = tmp_path / "a certificate.pem"
    write_certificate(pem, "test")
    assert_taken(ProxyOptions(certificate=pem), tmp_path, HERE)
    assert_taken(replace(PROXIED, certificate=pem), tmp_path, HERE)


@pytest.mark.haproxy
@pytest.mark.root
def test_haproxy_takes_a_user(tmp_path: Path) -> None:
    assert_taken(PLAIN, tmp_path, Host(1000, user="nobody"))


def assert_taken(options: ProxyOptions, directory: Path, host: Host) -> None:
    """Check that HAProxy accepts the configuration, without an error or a warning."""
    files = ProxyFiles(directory)
    for folder in (files.pages, files.jail):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.documents().items():
        (files.pages / name).write_text(text)
    files.pause_script.write_text(pause.script())
    files.routes.touch()
    files.domains.touch()
    files.links.touch()
    files.config.write_text(render(options, files, host).text)
    checked = subprocess.run(
        ("/usr/sbin/haproxy", "-c", "-f", str(files.config)), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr, checked.stderr


def test_config_is_deterministic() -> None:
    assert render(PLAIN, FILES, HERE) == render(ProxyOptions(), FILES, HERE)


def test_configuration_contains_a_digest_that_changes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = render(PLAIN, FILES, HERE)
    assert f'description "builderd previews {first.digest}"' in first.text
    others = [
        render(replace(PLAIN, port=8082), FILES, HERE),
        render(replace(PLAIN, timeouts=Timeouts(drain=1)), FILES, HERE),
        render(PLAIN, ProxyFiles(Path("/elsewhere")), HERE),
        render(PLAIN, FILES, Host(999)),
    ]
    monkeypatch.setattr(pages, "ALL", pages.ALL[:-1])
    others.append(render(PLAIN, FILES, HERE))
    assert len({first.digest, *(other.digest for other in others)}) == 6


def test_settings_are_in_the_config() -> None:
    times = Timeouts(connect=11, request=12, keep_alive=13, client=14, server=15, tunnel=16, drain=17)
    options = ProxyOptions(host="10.0.0.1", port=4711, threads=3, timeouts=times)
    text = render(options, FILES, HERE).text
    for line in (
        'bind "ipv4@10.0.0.1:4711"',
        "nbthread 3",
        "maxconn 1000",
        "timeout connect 11s",
        "timeout http-request 12s",
        "timeout http-keep-alive 13s",
        "timeout client 14s",
        "timeout server 15s",
        "timeout tunnel 16s",
        "hard-stop-after 17s",
    ):
        assert f"    {line}\n" in text


def test_an_event_waits_for_no_further_data() -> None:
    """Nagle's algorithm holds a small write back for up to 200 ms in the hope of more."""
    assert "    option http-no-delay\n" in render(PLAIN, FILES, HERE).text


def test_the_admin_socket_is_its_owners_alone() -> None:
    assert 'stats socket "/data/preview/admin.sock" mode 600 level admin' in render(PLAIN, FILES, HERE).text


def test_only_root_drops_its_rights() -> None:
    assert not re.search(r"^ *(user|chroot) ", render(PLAIN, FILES, HERE).text, re.MULTILINE)
    text = render(PLAIN, FILES, Host(1000, user="haproxy")).text
    assert "    user haproxy\n" in text
    assert '    chroot "/data/preview/empty"\n' in text


def test_an_address_in_front_is_believed_only_where_one_is_trusted() -> None:
    assert "set-src" not in render(PLAIN, FILES, HERE).text
    assert "acl from_proxy fc_src 10.0.0.0/8 fd00::/8" in render(PROXIED, FILES, HERE).text


def test_only_a_secure_way_sets_a_secure_cookie() -> None:
    plain = render(PLAIN, FILES, HERE).text
    secure = render(ProxyOptions(certificate=Path("/c.pem")), FILES, HERE).text
    assert 'hdr Set-Cookie "builderd_service_token=%[var(txn.linked)]; Path=/; HttpOnly; SameSite=Lax"' in plain
    assert "Secure" not in plain
    assert 'hdr Set-Cookie "__Host-builderd_service_token=%[var(txn.linked)]; Path=/; Secure; HttpOnly' in secure
    assert "alpn h2,http/1.1" in secure


@pytest.mark.parametrize(
    "url", ["ftp://a", "https://a/path", "https://a b", "https://a%[src]", "https://a\nb", 'https://"']
)
def test_an_address_of_the_api_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address of an API"):
        ProxyOptions(api_url=url)


SPANS = (0, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000)


@pytest.mark.parametrize("backend", ["preview_page", "preview_envelope"])
@pytest.mark.parametrize("status", [101, 200, 204, 301, 404, 500, 503])
def test_each_answer_is_counted_once_by_its_class_and_its_time(backend: str, status: int) -> None:
    text = render(PLAIN, FILES, HERE).text.partition(f"backend {backend} from")[2].partition("\nbackend ")[0]
    for number, low in enumerate((*SPANS, None)):
        cls = status // 100
        counters = [cls - 2] if cls > 1 else []
        if low is not None:
            counters += [4 + number]
            counters += [15 + (cls - 3) * len(SPANS) + number] if cls > 2 else []
        assert sorted(counted(text, status, low)) == sorted(counters)


def counted(text: str, status: int, milliseconds: int | None) -> list[int]:
    """Return the counters that an answer raises; ``milliseconds`` None: an answer of the proxy's own."""
    values = {"status": status, "res.timer.hdr": milliseconds}
    found = []
    for line in text.splitlines():
        action, _, conditions = line.strip().removeprefix("http-after-response ").partition(" if ")
        if not action.startswith("sc-inc-gpc("):
            continue
        tests = re.findall(r"\{ (\S+) (\d+):(\d*) \}", conditions)
        assert tests, line
        if all(lies_within(values[name], low, high) for name, low, high in tests):
            found.append(int(action.removeprefix("sc-inc-gpc(").partition(",")[0]))
    return found


def lies_within(value: int | None, low: str, high: str) -> bool:
    return value is not None and int(low) <= value <= int(high or value)
