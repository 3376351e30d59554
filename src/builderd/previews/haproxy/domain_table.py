"""Custom domains and their certificates: in the proxy's memory, and in the files that it reads when it starts.

``domains.map`` has a line ``host http|preview host`` or ``host https|preview host`` for each domain,
``certificates.list`` a line ``file host`` for each certificate. The proxy gets a change first and the files second:
a file says what is installed, so that a change which was cut short is seen as missing and made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from builderd.linux import atomic_files
from builderd.previews.haproxy import runtime_api
from builderd.previews.haproxy.config import CHALLENGES
from builderd.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.previews.haproxy.runtime_api import CommandRefused, ProxyGone
from builderd.previews.model import DomainAlias, fingerprint

#: A longer host is cut in the name of its file, which may have 255 bytes.
MAX_FILE_HOST = 180
#: The self-signed certificate's life: no client accepts it in any case.
DEFAULT_LIFE = timedelta(days=3650)
#: Seconds between two reads of the operator's certificate. It is renewed weeks before the old one expires.
CERTIFICATE_INTERVAL = 15.0
_CHALLENGES = Path(CHALLENGES)

log = logging.getLogger(__name__)


class DomainTable:
    """``installed`` has the preview host and the certificate's fingerprint of each domain.

    Methods raise ``ProxyGone`` and ``CommandRefused``.
    """

    def __init__(self, files: ProxyFiles, options: ProxyOptions) -> None:
        self.installed: dict[str, tuple[str, str | None]] = {}
        self._files = files
        self._options = options
        self._socket = files.admin_socket

    def load(self) -> None:
        """Read the files, and make those that are missing: the proxy starts only if all of them exist."""
        files = self._files
        files.certificates.mkdir(mode=0o700, exist_ok=True)
        if self._options.tls_port is not None and not _is_whole(files.default_certificate):
            _write_secret(files.default_certificate, _self_signed())
        self.installed = dict(self._read(files.domains))
        self._write()

    async def sync(self) -> None:
        """Make the proxy's memory equal to the files."""
        await runtime_api.sync_entries(self._socket, self._files.domains, self._values())
        if self._options.tls_port is None:
            return
        have = await runtime_api.certificates(self._socket)
        for host, (_, mark) in self.installed.items():
            if mark is not None and str(self._file(host)) not in have:
                await self._install(host, self._file(host).read_text())

    async def put(self, alias: DomainAlias) -> None:
        host, certificate = alias.host, alias.certificate if self._options.tls_port is not None else None
        entry = (alias.preview_host, None if certificate is None else fingerprint(certificate))
        if self.installed.get(host) == entry:
            return
        if certificate is not None:
            await self._install(host, certificate)
            _write_secret(self._file(host), certificate)
        await runtime_api.set_entry(self._socket, self._files.domains, host, _value(entry))
        self.installed[host] = entry
        self._write()
        if certificate is None and self._file(host).exists():
            await self._uninstall(host)

    async def remove(self, host: str) -> None:
        await runtime_api.delete_entry(self._socket, self._files.domains, host)
        self.installed.pop(host, None)
        # The list first: HAProxy does not start with a file in it that is missing.
        self._write()
        await self._uninstall(host)

    async def put_wildcard(self, certificate: str) -> None:
        """Replace the certificate for hosts without one of their own, in memory and in its file."""
        file = self._files.default_certificate
        if self._options.tls_port is not None and file.read_text() != certificate:
            await runtime_api.replace_certificate(self._socket, file, certificate)
            _write_secret(file, certificate)

    async def put_challenge(self, token: str, answer: str) -> None:
        await runtime_api.set_entry(self._socket, _CHALLENGES, token, answer)

    async def remove_challenge(self, token: str) -> None:
        await runtime_api.delete_entry(self._socket, _CHALLENGES, token)

    async def _install(self, host: str, certificate: str) -> None:
        listed, file = self._files.certificate_list, self._file(host)
        await runtime_api.add_certificate(self._socket, listed, file, host, certificate)

    async def _uninstall(self, host: str) -> None:
        if self._options.tls_port is not None:
            await runtime_api.remove_certificate(self._socket, self._files.certificate_list, self._file(host))
        self._file(host).unlink(missing_ok=True)

    def _values(self) -> Mapping[str, str]:
        return {host: _value(entry) for host, entry in self.installed.items()}

    def _file(self, host: str) -> Path:
        if len(host) > MAX_FILE_HOST:
            host = f"{host[:MAX_FILE_HOST]}-{sha256(host.encode()).hexdigest()[:16]}"
        return self._files.certificates / f"{host}.pem"

    def _read(self, path: Path) -> Mapping[str, tuple[str, str | None]]:
        """Read the map. A certificate whose file is missing or cut off counts as not installed."""
        found: dict[str, tuple[str, str | None]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            host, _, value = line.partition(" ")
            preview_host = value.partition("|")[2]
            file = self._file(host)
            mark = fingerprint(file.read_text()) if value.startswith("https|") and _is_whole(file) else None
            found[host] = (preview_host, mark)
        return found

    def _write(self) -> None:
        """Write both lists anew. Of 2,000 domains they have 250 KB."""
        names = "".join(f"{self._file(host)} {host}\n" for host, (_, mark) in self.installed.items() if mark)
        lines = "".join(f"{host} {value}\n" for host, value in self._values().items())
        atomic_files.replace(self._files.certificate_list, names.encode(), mode=0o600)
        atomic_files.replace(self._files.domains, lines.encode(), mode=0o644)


def _value(entry: tuple[str, str | None]) -> str:
    preview_host, mark = entry
    return f"{'http' if mark is None else 'https'}|{preview_host}"


def _is_whole(file: Path) -> bool:
    """Return False for a file that is missing, or that a power cut left empty: HAProxy would not start with it."""
    return file.exists() and file.read_bytes().rstrip().endswith(b"PRIVATE KEY-----")


def _write_secret(path: Path, text: str) -> None:
    atomic_files.replace(path, text.encode(), mode=0o600)


def _self_signed() -> str:
    """Return a certificate that names no host, for connections to hosts without one of their own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "no such host")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + DEFAULT_LIFE)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (made.public_bytes(serialization.Encoding.PEM) + private).decode()


async def watch_certificate(file: Path, admin_socket: Path) -> None:
    """Load the operator's certificate into the proxy again whenever its file has changed, until cancelled.

    An invalid one is logged once and tried again; the earlier certificate stays in use.
    """
    loaded: bytes | None = None
    logged: bytes | None = None
    while True:
        content = await asyncio.to_thread(lambda: file.read_bytes() if file.exists() else b"")
        if content != loaded:
            try:
                await runtime_api.replace_certificate(admin_socket, file, content.decode("ascii"))
                loaded = content
                log.info("certificate loaded file=%s", file)
            except ProxyGone:
                pass
            except (UnicodeDecodeError, CommandRefused) as error:
                if content != logged:
                    log.error("certificate rejected, the earlier one stays file=%s error=%s", file, error)  # noqa: TRY400
                logged = content
        await asyncio.sleep(CERTIFICATE_INTERVAL)
