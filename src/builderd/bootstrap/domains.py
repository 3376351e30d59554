"""Build the previews, the rules of custom domains and the certificate authority from the settings."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from cryptography import x509

from builderd.bootstrap.database import existing_store
from builderd.core.addresses import is_address
from builderd.core.errors import InvalidState
from builderd.database.unit_of_work import UnitOfWork
from builderd.domains.authority import AcmeAuthority, AcmeOptions
from builderd.domains.dns_updates import HookUpdates, Rfc2136Updates, TsigKey
from builderd.domains.model import DomainRules
from builderd.previews.haproxy.options import ProxyOptions
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.port import DnsUpdates
from builderd.settings import Settings

#: Addresses for documentation (RFC 5737, RFC 3849): the kernel picks the source for them, and no packet is sent.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def make_domain_rules(settings: Settings) -> DomainRules:
    preview, acme = settings.preview, settings.acme
    given = tuple(str(address) for address in acme.addresses)
    api_host = (urlsplit(settings.api_url).hostname or "").rstrip(".")
    return DomainRules(
        addresses=given or tuple(dict.fromkeys(_own_addresses(settings.host))),
        http_port=preview.public_port or settings.preview_port,
        https_port=None if preview.tls_port is None else preview.public_tls_port or preview.tls_port,
        reserved=frozenset({api_host} if api_host else ()),
        preview_domain=preview.domain,
        directory=acme.directory,
        per_builder=acme.domains,
        orders_previews=settings.has_wildcard,
        public_host=settings.public_host,
        orders_public=_orders_public(settings),
    )


def _orders_public(settings: Settings) -> bool:
    """Return True if the service orders the certificate of ``public_url``'s host.

    A handshake names no address (RFC 6066, 3), so an address's certificate is the one for no name: there can be one.
    """
    host = settings.public_host
    if host is None or settings.preview.tls_port is None or certificate_covers_api(settings):
        return False
    return not (is_address(host) and (settings.has_wildcard or settings.preview.certificate is not None))


def certificate_covers_api(settings: Settings) -> bool:
    """Return True if ``preview.certificate`` names the host of ``public_url``, so that none has to be ordered.

    A file that cannot be read covers nothing here; the proxy refuses it, and says why.
    """
    host, file = settings.public_host, settings.preview.certificate
    if host is None or file is None:
        return False
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    covered = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return bool({host, f"*.{host.partition('.')[2]}"} & covered)


def make_authority(settings: Settings) -> AcmeAuthority | None:
    """Return the authority, or None when there is no TLS port that certificates would be for."""
    acme = settings.acme
    if settings.preview.tls_port is None:
        return None
    hmac_key = acme.eab_hmac_key.get_secret_value() if acme.eab_hmac_key is not None else None
    return AcmeAuthority(AcmeOptions(acme.directory, acme.contact, acme.roots, acme.eab_key_id, hmac_key))


def make_dns_updates(settings: Settings) -> DnsUpdates | None:
    """Return the updates that prove the previews' domain by DNS, or None if no certificate is ordered for it."""
    dns, hook = settings.acme.dns, settings.acme.hook
    if not settings.has_wildcard:
        return None
    if hook is not None:
        return HookUpdates(hook, settings.acme.hook_timeout)
    return None if dns is None else Rfc2136Updates(dns.server, TsigKey.parse(dns.key.get_secret_value()))


async def rotate_account(settings: Settings) -> bool:
    """Delete the stored account at the authority, also while the service runs; return False if there was none.

    Raises ``InvalidState`` when there is no database.
    """
    async with existing_store(settings) as opened:
        return await opened.write(lambda uow: uow.acme_accounts.delete(settings.acme.directory))


async def look_again(settings: Settings) -> Sequence[str]:
    """Have the running service look at its own certificates now; return a line on each.

    Raises ``InvalidState`` when there is no database, or no certificate that the service orders for itself.
    """
    names, now = make_domain_rules(settings).own_certificates, datetime.now(UTC)
    if not names:
        raise InvalidState(
            "The service orders no certificate of its own: set preview.tls_port with public_url under https, "
            "acme.dns or acme.hook."
        )

    def work(uow: UnitOfWork) -> Sequence[str]:
        return [_look_again(uow, name, now) for name in sorted(names)]

    async with existing_store(settings) as opened:
        return await opened.write(work)


def _look_again(uow: UnitOfWork, name: str, now: datetime) -> str:
    stored = uow.wildcard_certificates.get(name)
    if stored is None:
        return f"{name}: the first order is due already."
    if not stored.may_be_asked_again(now):
        return f"{name}: the authority wants no order before {stored.next_try_at:%Y-%m-%d %H:%M} UTC: {stored.reason}"
    uow.wildcard_certificates.look_again(name, now)
    told = f" The last reason: {stored.reason}" if stored.reason else ""
    return f"{stored.label}: checked within 30 s by the running service.{told}"


def _own_addresses(host: str) -> Iterator[str]:
    """Yield the address that the previews listen on, or else those from which this machine reaches others."""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is not None and not address.is_unspecified:
        yield str(address)
        return
    for family, far in _FAR:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((far, 9))
            except OSError:
                continue
            yield probe.getsockname()[0]


def make_previews(settings: Settings) -> HaproxyPreviews:
    return HaproxyPreviews(settings.data_dir / "previews", proxy_options(settings))


def proxy_options(settings: Settings) -> ProxyOptions:
    return ProxyOptions(
        host=settings.host,
        port=settings.preview_port,
        # The proxy has another working directory than the service.
        certificate=settings.preview.certificate and settings.preview.certificate.absolute(),
        tls_port=settings.preview.tls_port,
        public_tls_port=settings.preview.public_tls_port,
        wildcard=settings.has_wildcard,
        trusted_proxies=settings.preview.trusted_proxies,
        address_connections=settings.preview.address_connections,
        api_url=settings.api_url,
        serves_api=settings.public_host is not None,
        api_has_certificate=certificate_covers_api(settings),
        hsts=settings.hsts,
    )
