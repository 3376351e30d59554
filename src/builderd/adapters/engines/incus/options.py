"""Address of Incus and names in it: the section ``incus`` of the settings, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path


@dataclass(frozen=True, slots=True)
class IncusOptions:
    """``socket``: the API's unix socket on this machine; ``url`` instead: ``https://host:port`` of any member.

    ``certificate`` and ``key`` are the client's, ``server_certificate`` is the one that the server must show.
    ``project``, ``network`` and its access list are made if missing; the storage ``pool`` must exist. ``recover`` is
    "wait" or "backup": of a lost member, after ``recover_after`` seconds.
    """

    socket: Path = Path("/var/lib/incus/unix.socket")
    url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_certificate: Path | None = None
    project: str = "builderd"
    pool: str = "default"
    network: str = "builderd"
    subnet: IPv4Network = field(default_factory=lambda: IPv4Network("10.99.0.0/16"))
    recover: str = "wait"
    recover_after: float = 60.0

    @property
    def place(self) -> str:
        """Return the server as messages name it."""
        return self.url or str(self.socket)
