"""The proxy's configuration, rendered from ``haproxy.cfg.j2``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from builderd.previews.haproxy import counters, pages, pause
from builderd.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.previews.model import API

if TYPE_CHECKING:
    from jinja2 import Template

DESCRIPTION = "builderd previews"
#: Parts of all connections (1 in so many): the most of one address, even if the setting allows more, and of the API,
#: which leaves some to the previews.
ADDRESS_PART, API_PART = 4, 2
#: Connections that the service's own listener takes.
API_MOST = 4_000
#: Bytes of an answer that the kernel takes for a visitor who reads nothing; it doubles the value, and without one takes
#: 4 MB, so that one address might fill the machine's memory for TCP. 5 MB/s at 100 ms.
SEND_BUFFER = 256 << 10
#: A map without a file: answers to challenges by token.
CHALLENGES = "virt@acme"
#: Lua instructions after which HAProxy may interrupt the script between two of its waits: more than it ever takes, so
#: that its counts are changed in one piece. At least, and for each request that may be paused.
UNINTERRUPTED, UNINTERRUPTED_EACH = 1_000_000, 100


@dataclass(frozen=True, slots=True)
class Host:
    """Limits of this machine. ``user`` is the user that the worker becomes if root starts it, else None."""

    max_connections: int
    user: str | None = None

    def part(self, part: int) -> int:
        """Return this part of all connections."""
        return max(self.max_connections // part, 1)

    def socket(self, path: Path) -> str:
        """Return the address of a socket; a worker that becomes another user sees its jail as the root of all paths."""
        return f"unix@/{path.name}" if self.user else f"unix@{path}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration's text. ``digest`` covers text, script and pages; a running proxy reports its own."""

    text: str
    digest: str


def template() -> str:
    return Path(__file__).with_name("haproxy.cfg.j2").read_text()


def render(options: ProxyOptions, files: ProxyFiles, host: Host) -> Configuration:
    content = (_render(options, files, host, ""), pause.script(), *pages.documents().values())
    digest = sha256("\0".join(content).encode()).hexdigest()[:16]
    return Configuration(_render(options, files, host, digest), digest)


def _render(options: ProxyOptions, files: ProxyFiles, host: Host, digest: str) -> str:
    most_paused = host.part(pause.PART)

    def listen(port: int) -> str:
        try:
            return f"ipv{ip_address(options.host).version}@{options.host}:{port}"
        except ValueError:
            return f"{options.host}:{port}"

    text = _compiled(template()).render(
        pages=pages,
        pause=pause,
        counters=counters,
        api=API,
        challenges=CHALLENGES,
        send_buffer=SEND_BUFFER,
        options=options,
        files=files,
        host=host,
        description=quoted(f"{DESCRIPTION} {digest}"),
        listen=listen,
        tls_only=options.speaks_tls_only,
        both_schemes=options.has_both_schemes,
        own_scheme="https" if options.speaks_tls_only else "http",
        most_of_address=min(options.address_connections, host.part(ADDRESS_PART)),
        most_of_api=min(host.part(API_PART), API_MOST),
        most_paused=most_paused,
        uninterrupted=max(UNINTERRUPTED, UNINTERRUPTED_EACH * most_paused),
        wake_socket=host.socket(files.wake_socket),
        api_socket=host.socket(files.api_socket),
    )
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines() if line.strip())


@cache
def _compiled(text: str) -> Template:
    # Imported when it renders: health is answered before.
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)  # noqa: S701 (no HTML)
    environment.filters["quoted"] = quoted
    return environment.from_string(text)


def quoted(text: object) -> str:
    """Quote any text as one word of a configuration line."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
