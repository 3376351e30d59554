"""Build the previews from the settings."""

from __future__ import annotations

from builderd.adapters.previews.haproxy.options import ProxyOptions
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.bootstrap.domains import certificate_covers_api
from builderd.settings import Settings


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
