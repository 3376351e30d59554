"""Options of connections to a service: certificates, and the environment's proxies."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(url: str) -> bool:
    """Return whether a service is on this machine: it is reached without the environment's proxies."""
    return urlsplit(url).hostname in LOOPBACK


def certificates(url: str, ca: str | Path | None) -> ssl.SSLContext | bool:
    """Return the certificates of ``SSL_CERT_FILE`` or else the system's, and those of ``ca``; True without TLS.

    Those of the environment hold for a connection to this machine, too.
    """
    if ca is None and not url.startswith("https:"):
        return True
    context = httpx2.create_ssl_context(trust_env=True)
    if ca is not None:
        context.load_verify_locations(cafile=str(ca))
    return context
