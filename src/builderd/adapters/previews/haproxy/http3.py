"""HTTP/3 on the TLS port, over UDP. Debian's HAProxy has it on the QUIC of OpenSSL, which HAProxy calls limited."""

from __future__ import annotations

from ipaddress import ip_address

from builderd.adapters.previews.haproxy.options import ProxyOptions
from builderd.adapters.previews.haproxy.section import quoted

#: Seconds for which a browser remembers that the host has HTTP/3.
REMEMBERED = 86_400


def global_lines() -> str:
    """Return the lines for the global section.

    By default each connection opens a socket on the port, which a worker that is not root may not below 1024.
    """
    return """
        limited-quic
        tune.quic.socket-owner listener
        """


def bind(options: ProxyOptions, certificates: str) -> str:
    """Return the lines that listen, and name HTTP/3 to visitors that came over TLS."""
    port = options.public_tls_port or options.tls_port
    return f"""
        bind {quoted(f"{_family(options.host)}@{options.host}:{options.tls_port}")} ssl {certificates} alpn h3
        http-after-response set-header Alt-Svc 'h3=":{port}"; ma={REMEMBERED}' if {{ ssl_fc }}
        """


def _family(host: str) -> str:
    try:
        return f"quic{ip_address(host).version}"
    except ValueError:
        return "quic4"
