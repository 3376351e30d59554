"""HAProxy's configuration, certificate and pages, its command, and the message where it does not start."""

from __future__ import annotations

import json
import re
import resource
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.previews.certificates import write_certificate

from builderd.previews.haproxy import pages, pause
from builderd.previews.haproxy.config import Host, render
from builderd.previews.haproxy.options import ProxyFiles, ProxyOptions, Timeouts
from builderd.previews.haproxy.pages import Page
from builderd.previews.haproxy.process import explain, host
from builderd.previews.model import RouteState

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


def filled(text: str) -> str:
    """Fill in a log format as HAProxy does."""
    text = text.replace(pages.HOST, "a.localhost").replace(pages.LOGS, " Logs.")
    assert not re.search(r"%(?!%)", text.replace("%%", ""))
    return text.replace("%%", "%")


@pytest.mark.parametrize("page", pages.ALL, ids=lambda page: page.name)
def test_the_envelope_is_the_contracts(page: Page) -> None:
    body = json.loads(filled(pages.envelope(page)))
    assert body["success"] is False
    assert body["code"] == page.code
    assert body["message"].startswith(page.text)
    assert body.get("data") == ({"host": "a.localhost"} if page.names_host else None)


def test_markup_in_a_text_stays_text() -> None:
    page = replace(pages.PAGES["stopped"], title="<b>&\"'%[src]", text='</p><script>%[var(txn.route)] 100% \\ "')
    text = filled(pages.html(page))
    assert "<script" not in text
    assert "<b>" not in text
    assert "%[src]" in text
    assert json.loads(filled(pages.envelope(page)))["message"].startswith(page.text)


def test_every_state_without_an_app_has_a_page() -> None:
    states = {state.value for state in RouteState} - {RouteState.OPEN.value}
    assert {page.name for page in pages.NOT_OPEN} == states | {"unheard", "full"}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            "[ALERT]    (12) : Binding [x.cfg:34] for frontend visitors: cannot bind socket (Address already in use) "
            "for [127.0.0.1:8081]",
            "port 8081, which another program has taken",
        ),
        (
            "[ALERT]    (12) : Binding [x.cfg:34] for frontend visitors: cannot bind socket (Permission denied)",
            "run as root, or choose one above 1023",
        ),
        (
            "[NOTICE]   (1) : version\n[ALERT]    (1) : config : no such thing\n",
            "does not start: config : no such thing",
        ),
        ("killed by the weather", "killed by the weather"),
        ("", "HAProxy printed nothing"),
    ],
)
def test_a_failed_start_is_explained(told: str, said: str) -> None:
    assert said in explain(told, ProxyOptions())


@pytest.mark.parametrize(("descriptors", "room"), [(1_000_000, 20_000), (1024, 412), (10, 1), (-1, 20_000)])
def test_no_more_connections_than_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, room: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, descriptors))
    assert host(ProxyOptions()).max_connections == room


@pytest.mark.parametrize(("uid", "user"), [(0, True), (1000, False)])
def test_only_root_has_a_user_to_become(monkeypatch: pytest.MonkeyPatch, uid: int, user: bool) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert (host(ProxyOptions()).user is not None) is user
