"""The configuration is one that HAProxy takes, says what was set, and is known by its digest."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "url", ["ftp://a", "https://a/path", "https://a b", "https://a%[src]", "https://a\nb", 'https://"']
)
def test_an_address_of_the_api_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address of an API"):
        ProxyOptions(api_url=url)
