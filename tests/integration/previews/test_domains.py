"""Custom domains in a real proxy: over HTTP and TLS, with certificates that change without a reload."""

from __future__ import annotations

import socket
import ssl
import stat
from collections.abc import Callable, Iterator

import pytest
from tests.integration.previews.test_life import kill
from tests.previews.certificates import make_pem
from tests.previews.proxy import TOKEN, App, Proxy, free_port, new_host
from tests.previews.visitor import Answer, parse, read_all

from builderd.previews.haproxy.options import ProxyFiles
from builderd.previews.model import DomainAlias

pytestmark = pytest.mark.haproxy
CHALLENGE = "/.well-known/acme-challenge/"


@pytest.fixture(scope="module")
def tls() -> Iterator[Proxy]:
    proxy = Proxy(tls_port=free_port())
    try:
        yield proxy.start()
    finally:
        proxy.close()


def add(proxy: Proxy, preview_host: str, *, certificate: bool = True) -> DomainAlias:
    host = new_host().replace("localhost", "example.com")
    alias = DomainAlias(host, preview_host, make_pem(host) if certificate else None)
    proxy.run(proxy.previews.put_domain(alias))
    return alias


def connect(proxy: Proxy, name: str | None) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = proxy.options.tls_port
    assert port is not None
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=20), server_hostname=name)


def served(proxy: Proxy, name: str) -> bytes:
    """The certificate that a client gets for this name."""
    with connect(proxy, name) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def get(proxy: Proxy, name: str | None, host: str, path: str = "/head", *headers: str) -> Answer:
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers)
    with connect(proxy, name) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return parse(read_all(connection))


def der(alias: DomainAlias) -> bytes:
    assert alias.certificate is not None
    return ssl.PEM_cert_to_DER_cert(alias.certificate[: alias.certificate.index("-----BEGIN PRIVATE")])


def test_a_domain_leads_to_the_app_over_tls_and_plain_http_redirects(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app))
    assert served(tls, alias.host) == der(alias)
    answer = get(tls, alias.host, alias.host)
    assert answer.status == 200
    assert answer.seen["host"] == [alias.host]
    assert answer.seen["x-forwarded-proto"] == ["https"]
    plain = tls.visitor.get(alias.host.upper(), "/a?b=c")
    assert (plain.status, plain.header("location")) == (
        308,
        f"https://{alias.host}:{tls.options.tls_port}/a?b=c",
    )


def test_a_domain_without_a_certificate_is_served_over_plain_http(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app), certificate=False)
    answer = tls.visitor.get(f"{alias.host}.")
    assert answer.status == 200
    assert answer.seen["x-forwarded-proto"] == ["http"]
    assert answer.seen["x-forwarded-host"] == [f"{alias.host}."]


def test_a_private_builder_asks_for_its_token_on_its_domain(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app, private=True))
    assert get(tls, alias.host, alias.host).status == 401
    assert get(tls, alias.host, alias.host, "/head", f"X-Service-Token: {TOKEN}").status == 200
    link = get(tls, alias.host, alias.host, f"/head?service_token={TOKEN}")
    assert link.status == 302
    cookie = link.header("set-cookie")
    assert cookie is not None
    assert cookie.startswith("__Host-")
    sent = f"Cookie: {cookie.partition(';')[0]}"
    own, foreign = f"Origin: https://{alias.host}", "Origin: https://evil.example"
    assert get(tls, alias.host, alias.host, "/head", sent, own).status == 200
    assert get(tls, alias.host, alias.host, "/head", sent, foreign).status == 401


def test_pages_name_the_host_that_the_visitor_asked_for(tls: Proxy, app: App) -> None:
    preview = tls.open(app, private=True)
    alias = add(tls, preview, certificate=False)
    page = tls.visitor.browse(alias.host)
    assert page.status == 401
    assert preview not in page.text


def test_connections_made_for_another_name_are_refused(tls: Proxy, app: App) -> None:
    preview = tls.open(app)
    one, other = add(tls, preview), add(tls, preview)
    assert get(tls, one.host, other.host).status == 421
    assert get(tls, one.host, preview).status == 421
    assert get(tls, preview, one.host).status == 421
    assert get(tls, one.host.upper(), one.host).status == 200
    assert get(tls, preview, preview).status == 200


def test_the_challenge_path_never_reaches_an_app(tls: Proxy, app: App) -> None:
    preview = tls.open(app)
    alias = add(tls, preview)
    tls.run(tls.previews.put_challenge("to-ken_1", "to-ken_1.thumbprint"))
    for host in (alias.host, preview, "unknown.example"):
        found = tls.visitor.get(host, f"{CHALLENGE}to-ken_1")
        assert (found.status, found.body) == (200, b"to-ken_1.thumbprint")
        for path in (f"{CHALLENGE}other", CHALLENGE, f"http://{host}{CHALLENGE}other"):
            assert tls.visitor.get(host, path).text == "no such challenge"
        assert tls.visitor.get(host, f"{CHALLENGE}x", method="POST").status == 404
    tls.run(tls.previews.remove_challenge("to-ken_1"))
    tls.run(tls.previews.remove_challenge("to-ken_1"))
    assert tls.visitor.get(alias.host, f"{CHALLENGE}to-ken_1").status == 404


def test_a_renewed_certificate_is_served_to_new_connections_and_no_open_one_ends(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app))
    workers = tls.run(tls.previews.activity())
    with connect(tls, alias.host) as kept:
        renewed = DomainAlias(alias.host, alias.preview_host, make_pem(alias.host))
        tls.run(tls.previews.put_domain(renewed))
        assert served(tls, alias.host) == der(renewed)
        kept.sendall(f"GET /head HTTP/1.1\r\nHost: {alias.host}\r\nConnection: close\r\n\r\n".encode())
        assert parse(read_all(kept)).status == 200
    assert workers is not None
    files = ProxyFiles(tls.directory)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in files.certificates.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(files.certificates.stat().st_mode) == 0o700


def test_a_removed_domain_is_unknown_and_its_key_is_gone(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app))
    tls.run(tls.previews.remove_domain(alias.host))
    tls.run(tls.previews.remove_domain(alias.host))
    assert tls.visitor.get(alias.host).status == 404
    assert served(tls, alias.host) != der(alias)
    assert not (ProxyFiles(tls.directory).certificates / f"{alias.host}.pem").exists()


def test_a_bad_certificate_is_refused_and_the_old_one_stays(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app))
    with pytest.raises(Exception, match="rejects a change"):
        tls.run(tls.previews.put_domain(DomainAlias(alias.host, alias.preview_host, "not a certificate")))
    assert served(tls, alias.host) == der(alias)


def test_a_killed_proxy_comes_back_with_its_domains_and_certificates(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app))
    longest = DomainAlias(f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}", alias.preview_host, make_pem("a.example"))
    tls.run(tls.previews.put_domain(longest))
    kill(tls)
    tls.start()
    assert served(tls, alias.host) == der(alias)
    assert served(tls, longest.host) == der(longest)
    assert get(tls, alias.host, alias.host).status == 200


def test_the_next_service_puts_back_what_the_proxy_lost(tls: Proxy, app: App) -> None:
    alias = add(tls, tls.open(app))
    files = ProxyFiles(tls.directory)
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(files.admin_socket))
        file = files.certificates / f"{alias.host}.pem"
        admin.sendall(
            f"del map {files.domains} {alias.host}; del ssl crt-list {files.certificate_list} {file}; "
            f"del ssl cert {file}\n".encode()
        )
        read_all(admin)
    assert served(tls, alias.host) != der(alias)
    service = tls.service()
    tls.run(service.start())
    assert tls.run(service.domains())[alias.host] == (alias.preview_host, alias.fingerprint)
    assert served(tls, alias.host) == der(alias)
    assert get(tls, alias.host, alias.host).status == 200


def test_with_a_wildcard_previews_are_redirected_too(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy(tls_port=free_port(), public_tls_port=443, wildcard=True).start()
    preview = proxy.open(app)
    pem = make_pem("*.localhost")
    for _ in range(2):
        proxy.run(proxy.previews.put_wildcard(pem))
    assert served(proxy, preview) == der(DomainAlias("a.example", preview, pem))
    assert get(proxy, preview, preview).seen["x-forwarded-proto"] == ["https"]
    plain = proxy.visitor.get(preview, "/a?b=c")
    assert (plain.status, plain.header("location")) == (308, f"https://{preview}/a?b=c")
    assert proxy.visitor.get("unknown.localhost").status == 404
    assert proxy.visitor.get(preview, f"{CHALLENGE}x").status == 404
