"""Custom domains with real parts: a name server of the test, Debian's Pebble, HAProxy, and the job between them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.name
import dns.tsig
import pytest
from cryptography import x509
from tests.application import World, fake_world
from tests.domains.parts import PEBBLE, DnsServer, Pebble
from tests.fakes.clock import FakeClock
from tests.integration.previews.test_domains import add as previews_add
from tests.integration.previews.test_domains import connect, der, get, served
from tests.previews.proxy import App, Proxy, free_port
from tests.previews.visitor import parse, read_all

from builderd.builders.model import Builder
from builderd.domains import name_servers
from builderd.domains import service as domains
from builderd.domains.authority import AcmeAuthority, AcmeOptions
from builderd.domains.dns_updates import Rfc2136Updates, TsigKey
from builderd.domains.model import Domain, DomainRules, DomainStatus
from builderd.domains.name_servers import DnsNameServers, HttpChallengeProbe
from builderd.domains.renewal import DomainJob, WildcardJob
from builderd.previews.haproxy.options import ProxyFiles
from builderd.previews.model import PreviewDomain, Route, RouteState
from builderd.previews.port import DnsRecords, OrderFailed

pytestmark = [
    pytest.mark.haproxy,
    pytest.mark.skipif(not Path(PEBBLE).exists(), reason="needs Debian's package pebble: script/setup --test"),
]
OURS = "127.0.0.1"


@pytest.fixture(scope="module")
def tls() -> Iterator[Proxy]:
    proxy = Proxy(tls_port=free_port())
    try:
        yield proxy.start()
    finally:
        proxy.close()


@pytest.fixture(scope="module")
def pebble(name_server: DnsServer, tls: Proxy) -> Iterator[Pebble]:
    started = Pebble(name_server.address, tls.options.port, domainBlocklist=["blocked.test"])
    yield started
    started.close()


@pytest.fixture(scope="module")
def world(tls: Proxy, name_server: DnsServer, pebble: Pebble) -> Iterator[World]:
    """The application on fakes, but for everything that concerns domains."""
    stack = AsyncExitStack()
    made = tls.run(stack.enter_async_context(fake_world()))
    made.clock = FakeClock(datetime.now(UTC))
    made.application = replace(
        made.application,
        clock=made.clock,
        previews=tls.previews,
        domain_rules=DomainRules((OURS,), tls.options.port, tls.options.tls_port, directory=pebble.directory),
        name_servers=DnsNameServers((name_server.address,)),
        challenge_probe=HttpChallengeProbe(),
        authority=AcmeAuthority(AcmeOptions(pebble.directory, "ops@example.com", pebble.roots)),
    )
    yield made
    tls.run(stack.aclose())


def add(tls: Proxy, world: World, app: App, host: str) -> tuple[Builder, Domain]:
    """A builder that runs, and its claim of the host."""
    builder = tls.run(world.ask(name=host.partition(".")[0]))
    tls.put(Route(builder.host, RouteState.OPEN, app.address))
    now = world.clock.now()
    domain, _ = tls.run(
        world.application.store.write(
            lambda uow: domains.add(uow, world.application, world.caller, builder.id, host, now)
        )
    )
    return builder, domain


def work(tls: Proxy, world: World, domain: Domain) -> Domain:
    """All that is due now."""

    async def run() -> Domain:
        job = DomainJob(world.application)
        for _ in range(2):
            await job.poll()
            await job.rest()
        found = await world.read(lambda uow: uow.domains.get(domain.id))
        assert found is not None
        return found

    return tls.run(run())


def names_of(certificate: bytes) -> list[str]:
    found = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def test_a_domain_gets_a_certificate_serves_the_app_and_is_renewed(
    tls: Proxy, world: World, name_server: DnsServer, app: App
) -> None:
    host = "xn--bcher-kva.example.test"
    name_server.records[host, "CNAME"] = ["target.example.test"]
    name_server.point("target.example.test", OURS)
    builder, domain = add(tls, world, app, host)
    first = work(tls, world, domain)
    assert (first.status, first.reason) == (DomainStatus.ACTIVE, "")
    certificate = served(tls, host)
    assert names_of(certificate) == [host]
    answer = get(tls, host, host)
    assert (answer.status, answer.seen["host"]) == (200, [host])
    assert tls.visitor.get(host, "/").header("location") == world.application.domain_rules.url(first)
    tls.run(tls.previews.put(Route(builder.host, RouteState.STOPPED)))
    assert get(tls, host, host).status == 503
    tls.put(Route(builder.host, RouteState.OPEN, app.address))

    assert first.expires_at is not None
    world.clock.move((first.expires_at - world.clock.now() - timedelta(days=1)).total_seconds())
    with connect(tls, host) as kept:
        renewed = work(tls, world, domain)
        assert renewed.fingerprint != first.fingerprint
        assert served(tls, host) != certificate
        kept.sendall(f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert parse(read_all(kept)).status == 200
    # Everything comes back from the database alone, as after a restore elsewhere.
    files = ProxyFiles(tls.directory)
    pem = (files.certificates / f"{host}.pem").read_text()
    tls.run(tls.previews.remove_domain(host))
    assert work(tls, world, domain).fingerprint == renewed.fingerprint
    assert (files.certificates / f"{host}.pem").read_text() == pem
    assert ssl.DER_cert_to_PEM_cert(served(tls, host)).strip() in pem


def test_error_of_the_authority_is_reported_and_the_name_not_served(
    tls: Proxy, world: World, name_server: DnsServer, app: App
) -> None:
    host = "shop.blocked.test"
    name_server.point(host, OURS)
    builder, domain = add(tls, world, app, host)
    failed = work(tls, world, domain)
    assert failed.status is DomainStatus.FAILED
    assert "rejectedIdentifier" in failed.reason
    assert tls.run(tls.previews.domains())[host] == (builder.host, None)
    # It leads to the app over plain HTTP meanwhile.
    assert tls.visitor.get(host).status == 200


def test_unverified_name_is_reported(world: World, tls: Proxy, name_server: DnsServer) -> None:
    host = "unproven.example.test"
    name_server.point(host, OURS)
    authority = world.application.authority
    assert authority is not None
    account = tls.run(world.application.store.write(lambda uow: domains.account_key(uow, world.application)))

    async def publish_nothing(token: str, answer: str) -> None:
        pass

    with pytest.raises(OrderFailed, match="could not verify the name: unauthorized"):
        tls.run(authority.issue(account, host, publish_nothing))


def test_records_are_read_as_the_name_servers_have_them(tls: Proxy, world: World, name_server: DnsServer) -> None:
    names = world.application.name_servers
    assert names is not None
    name_server.records["alias.example.test", "CNAME"] = ["real.example.test"]
    name_server.point("real.example.test", "192.0.2.1", "2001:db8::1")
    name_server.records["example.test", "CAA"] = ['0 issue "ca\\027[31m.test"']
    name_server.records["_builderd.alias.example.test", "TXT"] = ['"builderd-domain=" "one"', '"<b>other</b>"']
    found = tls.run(names.records("alias.example.test", "_builderd.alias.example.test"))
    assert found.addresses == ("192.0.2.1", "2001:db8::1")
    assert found.alias == "real.example.test"
    assert [(one.tag, one.value) for one in found.caa] == [("issue", "ca[31m.test")]
    assert set(found.texts) == {"builderd-domain=one", "<b>other</b>"}
    del name_server.records["example.test", "CAA"]
    assert tls.run(names.records("missing.example.test", "_builderd.missing.example.test")) == DnsRecords()
    name_server.failing.add("broken.example.test")
    broken = tls.run(names.records("broken.example.test", "_builderd.broken.example.test"))
    assert "SERVFAIL" in broken.error


def test_silent_name_servers_are_given_up(
    tls: Proxy, world: World, name_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_servers, "TOTAL", 0.1)
    names, host = world.application.name_servers, ".".join("x" * 60) + ".silent.test"
    assert names is not None
    name_server.silent.add(host)
    found = tls.run(names.records(host, f"_builderd.{host}"))
    assert "no answer" in found.error


def test_a_wildcard_for_the_previews_is_proven_by_dns_updates(
    tls: Proxy, world: World, name_server: DnsServer, app: App
) -> None:
    secret, zone = "c2VjcmV0LXNlY3JldC1zZWNyZXQh", "previews.test"
    name_server.keys = {dns.name.from_text("acme"): dns.tsig.Key("acme", secret, "hmac-sha256")}
    name_server.zone = zone
    name_server.records[zone, "SOA"] = ["ns.previews.test. host.previews.test. 1 60 60 60 60"]
    wrong = Rfc2136Updates(name_server.address, TsigKey.parse("acme:AAAA"))
    domain = f"apps.{zone}"
    # A clock of its own: tests before this one move the shared one by years.
    clock = FakeClock(datetime.now(UTC))
    application = replace(
        world.application,
        preview_domain=PreviewDomain("https", domain, tls.options.tls_port),
        dns_updates=wrong,
        clock=clock,
    )
    tls.run(WildcardJob(application).run_once())
    failed = tls.run(world.read(lambda uow: uow.wildcard_certificates.get(domain)))
    assert failed is not None
    assert failed.certificate is None
    assert "refused the update" in failed.reason or "gives no answer" in failed.reason
    clock.move(61)
    updates = Rfc2136Updates(name_server.address, TsigKey.parse(f"hmac-sha256:acme:{secret}"))
    application = replace(application, dns_updates=updates)
    tls.run(WildcardJob(application).run_once())
    stored = tls.run(world.read(lambda uow: uow.wildcard_certificates.get(domain)))
    assert stored is not None
    assert (stored.failures, stored.reason) == (0, "")
    certificate = served(tls, f"any.{domain}")
    assert set(names_of(certificate)) == {domain, f"*.{domain}"}
    # No record is left, and nothing is ordered again.
    assert name_server.records[f"_acme-challenge.{domain}", "TXT"] == []
    tls.run(WildcardJob(application).run_once())
    assert served(tls, f"any.{domain}") == certificate
    alias = previews_add(tls, tls.open(app))
    assert served(tls, alias.host) == der(alias)


@pytest.mark.slow
def test_an_account_is_bound_to_one_at_the_authority(tls: Proxy, world: World, name_server: DnsServer) -> None:
    host, key = "bound.example.test", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    name_server.point(host, OURS)
    bound = Pebble(
        name_server.address,
        tls.options.port,
        externalAccountBindingRequired=True,
        externalAccountMACKeys={"kid-1": key},
    )
    try:
        for hmac_key, words in (("d3Jvbmctd3Jvbmctd3Jvbmc", "the authority"), (key, None)):
            authority = AcmeAuthority(AcmeOptions(bound.directory, None, bound.roots, "kid-1", hmac_key))
            account = authority.new_account_key()
            if words is None:
                issued = tls.run(authority.issue(account, host, tls.previews.put_challenge))
                assert host in x509.load_pem_x509_certificate(issued.pem.encode()).extensions.get_extension_for_class(
                    x509.SubjectAlternativeName
                ).value.get_values_for_type(x509.DNSName)
            else:
                with pytest.raises(OrderFailed, match=words):
                    tls.run(authority.issue(account, host, tls.previews.put_challenge))
    finally:
        bound.close()
