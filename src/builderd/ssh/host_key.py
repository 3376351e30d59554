"""The SSH gateway's host key: generated once and kept in a file."""

from __future__ import annotations

from pathlib import Path

import asyncssh

from builderd.core.errors import EngineUnavailable
from builderd.executions.model import Gateway
from builderd.linux import atomic_files

KIND = "ssh-ed25519"


def load(path: Path) -> asyncssh.SSHKey:
    """Read the key from a file, or generate it there. Raises ``EngineUnavailable`` when it cannot be read."""
    if not path.exists():
        key = asyncssh.generate_private_key(KIND, comment="builderd")
        atomic_files.replace(path, key.export_private_key(), durable=True)
    try:
        return asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError) as error:
        raise EngineUnavailable(
            f"The SSH host key {path} cannot be read: {error}. Restore it from a backup, or remove it for a new one."
        ) from None


def gateway(key: asyncssh.SSHKey, host: str, port: int) -> Gateway:
    """Return the gateway's address, public key and fingerprint as the API shows them."""
    kind, text, *_ = key.export_public_key().decode().split()
    return Gateway(host, port, f"{kind} {text}", key.get_fingerprint())
