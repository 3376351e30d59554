"""Rules of custom domains and the authority, from the settings."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.previews.certificates import make_pem

from builderd.bootstrap.configuration import load
from builderd.bootstrap.database import open_store
from builderd.bootstrap.domains import make_authority, make_dns_updates, make_domain_rules
from builderd.cli.group import builderd
from builderd.core.errors import ValidationFailed
from builderd.domains.dns_updates import HookUpdates
from builderd.domains.model import WildcardCertificate, public_name
from builderd.settings import Settings


def settings_of(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "builderd.toml"
    file.write_text(text)
    return load(file, data_dir=tmp_path / "data")


def test_without_tls_domains_are_plain_and_no_authority_is_asked(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "")
    rules = make_domain_rules(settings)
    assert (rules.addresses, rules.http_port, rules.https_port) == (("127.0.0.1",), 8081, None)
    assert make_authority(settings) is None
    assert make_dns_updates(settings) is None


def test_ports_addresses_and_reserved_hosts_come_from_the_settings(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        """
        host = "0.0.0.0"
        public_url = "https://API.example.com"
        preview_port = 8000
        [preview]
        domain = "apps.example.com"
        public_port = 80
        tls_port = 8443
        public_tls_port = 443
        [acme]
        directory = "https://localhost:14000/dir"
        addresses = ["203.0.113.5", "2001:DB8::5"]
        resolvers = ["127.0.0.1:5353", "[::1]:53"]
        domains = 3
        [acme.dns]
        server = "127.0.0.1:53"
        key = "hmac-sha256:acme:c2VjcmV0"
        """,
    )
    rules = make_domain_rules(settings)
    assert rules.addresses == ("203.0.113.5", "2001:db8::5")
    assert (rules.http_port, rules.https_port, rules.per_builder) == (80, 443, 3)
    assert rules.reserved == {"api.example.com"}
    assert rules.directory == "https://localhost:14000/dir"
    assert make_authority(settings) is not None
    assert make_dns_updates(settings) is not None
    assert settings.preview_domain.url("app.apps.example.com") == "https://app.apps.example.com/"


def test_a_service_on_every_address_expects_the_machines_own(tmp_path: Path) -> None:
    rules = make_domain_rules(settings_of(tmp_path, 'host = "0.0.0.0"'))
    assert all(not ip_address(address).is_unspecified for address in rules.addresses)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('directory = "ftp://ca"', "acme.directory"),
        ('contact = "nobody"', "acme.contact"),
        ('resolvers = ["ns.example.com:53"]', "acme.resolvers"),
        ('resolvers = ["127.0.0.1"]', "acme.resolvers"),
        ('resolvers = ["127.0.0.1:99999"]', "acme.resolvers"),
        ('addresses = ["example.com"]', "acme.addresses"),
        ('eab_key_id = "one"', "acme"),
        ('dns = { server = "127.0.0.1:53" }', "acme.dns"),
        ('dns = { server = "127.0.0.1:53", key = "no key" }', "acme.dns"),
        ('hook = "bin/x"', "acme.hook"),
        ('hook = "/bin/x"\ndns = { server = "127.0.0.1:53", key = "a:c2Vj" }', "acme"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ValidationFailed) as error:
        settings_of(tmp_path, f"[acme]\n{text}\n")
    assert any(field.startswith(name) for field in error.value.errors), error.value.errors


@pytest.mark.parametrize(
    ("text", "host", "orders"),
    [
        ('public_url = "https://API.example.com"\n[preview]\ntls_port = 443', "api.example.com", True),
        (
            'public_url = "https://api.example.com"\n[preview]\ntls_port = 8443\npublic_tls_port = 443',
            "api.example.com",
            True,
        ),
        ('public_url = "https://203.0.113.5"\n[preview]\ntls_port = 443', "203.0.113.5", True),
        (
            'public_url = "https://api.example.com"\n[preview]\ntrusted_proxies = ["192.0.2.0/24"]',
            "api.example.com",
            False,
        ),
        # Another server has that port, or there is no HTTPS.
        ('public_url = "https://api.example.com:9443"\n[preview]\ntls_port = 443', None, False),
        ('public_url = "http://api.example.com"\n[preview]\ntls_port = 443', None, False),
        ('public_url = "https://api.example.com"', None, False),
        ('public_url = "https://localhost"\n[preview]\ntls_port = 443', None, False),
        ('public_url = "https://[2001:db8::5]"\n[preview]\ntls_port = 443', None, False),
        ('public_url = "https://a..example"\n[preview]\ntls_port = 443', None, False),
        ('public_url = "https://a.example."\n[preview]\ntls_port = 443', "a.example", True),
        ("[preview]\ntls_port = 443", None, False),
    ],
)
def test_the_proxy_serves_the_api_where_public_url_is_its_own(
    tmp_path: Path, text: str, host: str | None, orders: bool
) -> None:
    settings = settings_of(tmp_path, text)
    rules = make_domain_rules(settings)
    assert (rules.public_host, rules.orders_public) == (host, orders and host is not None)


@pytest.mark.parametrize(("names", "orders"), [(("example.com", "*.example.com"), False), (("other.example",), True)])
def test_a_certificate_of_the_operator_that_names_the_host_is_enough(
    tmp_path: Path, names: tuple[str, ...], orders: bool
) -> None:
    file = tmp_path / "own.pem"
    file.write_text(make_pem(names[-1]))
    text = f'public_url = "https://api.example.com"\n[preview]\ntls_port = 443\ncertificate = "{file}"'
    rules = make_domain_rules(settings_of(tmp_path, text))
    assert (rules.public_host, rules.orders_public) == ("api.example.com", orders)


def test_a_hook_proves_the_previews_domain_in_place_of_updates(tmp_path: Path) -> None:
    base = '[preview]\ndomain = "apps.example.com"\ntls_port = 443\n[acme]\nhook = "/usr/local/sbin/dns-record"\n'
    settings = settings_of(tmp_path, base)
    assert settings.preview_domain.scheme == "https"
    assert isinstance(make_dns_updates(settings), HookUpdates)
    assert make_domain_rules(settings).orders_previews


def test_nothing_is_proven_by_dns_beside_a_certificate_of_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "own.pem"
    file.write_text(make_pem("*.apps.example.com"))
    text = (
        f'[preview]\ndomain = "apps.example.com"\ntls_port = 443\ncertificate = "{file}"\n[acme]\nhook = "/bin/true"\n'
    )
    settings = settings_of(tmp_path, text)
    assert make_dns_updates(settings) is None
    assert not make_domain_rules(settings).orders_previews


OWN = 'public_url = "https://api.example.com"\n[preview]\ntls_port = 443\n'


def run_check(tmp_path: Path) -> Result:
    words = ["acme", "check", "--data-dir", str(tmp_path / "data"), "--config", str(tmp_path / "builderd.toml")]
    return CliRunner().invoke(builderd, words)


def test_the_operators_command_has_the_own_certificates_looked_at_now(tmp_path: Path) -> None:
    settings, name = settings_of(tmp_path, OWN), public_name("api.example.com")
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)

    async def put(reason: str) -> None:
        async with open_store(settings) as opened:
            row = WildcardCertificate(name, later, failures=7, reason=reason)
            await opened.write(lambda uow: uow.wildcard_certificates.put(row))

    async def next_try() -> datetime:
        async with open_store(settings) as opened:
            found = await opened.read(lambda uow: uow.wildcard_certificates.get(name))
        assert found is not None
        return found.next_try_at

    settings.data_dir.mkdir()
    asyncio.run(put("no record: api.example.com has none"))
    done = run_check(tmp_path)
    assert done.exit_code == 0, done.output
    assert done.output == (
        "api.example.com: checked within 30 s by the running service. "
        "The last reason: no record: api.example.com has none\n"
    )
    assert asyncio.run(next_try()) < later
    asyncio.run(put("the authority refused the order: rateLimited: too many"))
    assert "the authority wants no order before" in run_check(tmp_path).output
    assert asyncio.run(next_try()) == later


@pytest.mark.parametrize(
    ("text", "words"), [("", "orders no certificate of its own"), (OWN, "There is no builderd in")]
)
def test_the_operators_command_says_what_is_missing(tmp_path: Path, text: str, words: str) -> None:
    settings_of(tmp_path, text)
    done = run_check(tmp_path)
    assert done.exit_code == 1
    assert words in done.output
