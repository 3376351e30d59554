"""The gateway's host key: made once, kept, and known by its fingerprint."""

from __future__ import annotations

from pathlib import Path

import asyncssh

from builderd.domain.errors import EngineUnavailable
from builderd.domain.ssh import Gateway
from builderd.linux import durable

KIND = "ssh-ed25519"


def load(path: Path) -> asyncssh.SSHKey:
    """The key of this file, which is made when there is none. Raises ``EngineUnavailable`` when it is damaged."""
    if not path.exists():
        _make(path)
    try:
        return asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError) as error:
        raise EngineUnavailable(
            f"The SSH host key {path} cannot be read: {error}. Put it back, or remove it."
        ) from None


def _make(path: Path) -> None:
    durable.replace(path, asyncssh.generate_private_key(KIND, comment="builderd").export_private_key())


def gateway(key: asyncssh.SSHKey, host: str, port: int) -> Gateway:
    """What callers are told of the gateway at this address."""
    kind, text, *_ = key.export_public_key().decode().split()
    return Gateway(host, port, f"{kind} {text}", key.get_fingerprint())
