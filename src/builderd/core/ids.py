"""Identifiers: UUIDs as lower-case text, and secrets that are shown once."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from typing import NewType

TenantId = NewType("TenantId", str)
TokenId = NewType("TokenId", str)
BuilderId = NewType("BuilderId", str)
SandboxId = NewType("SandboxId", str)
WebhookId = NewType("WebhookId", str)
UploadId = NewType("UploadId", str)
BackupId = NewType("BackupId", str)
RestoreId = NewType("RestoreId", str)
DomainId = NewType("DomainId", str)
#: Engine's name of a disk. A builder's data moves to a new disk with each new version.
DiskId = NewType("DiskId", str)

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def new_id() -> str:
    """Return a random UUID (RFC 9562, version 4) as 36 lower-case characters."""
    return str(uuid.uuid4())


def new_sandbox_id() -> SandboxId:
    """16 hex characters, fit for the names of cgroups, links and containers on any engine."""
    return SandboxId(secrets.token_hex(8))


def new_secret(prefix: str) -> str:
    """A secret with 256 bits of randomness, such as ``bd_…``; the prefix tells scanners what it is."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def secret_hash(secret: str) -> str:
    """Return the SHA-256 of a secret as 64 hex characters; only this hash of an API token is stored."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def is_id(text: str) -> bool:
    """Return True for a text in the form of an id."""
    return _UUID.fullmatch(text) is not None
