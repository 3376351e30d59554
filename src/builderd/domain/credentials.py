"""Credentials: a tenant's named secrets, handed to the builders that ask for them and never read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from builderd.domain.ids import BuilderId, TenantId

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
MAX_VARIABLES = 100
#: Limit of all names and values of one credential together.
MAX_BYTES = 64_000
#: Limit per tenant.
MAX_CREDENTIALS = 500


@dataclass(frozen=True, slots=True)
class Credential:
    """Stored credential. ``variables`` are the names of the sealed values, in order.

    ``last_used_by`` is the builder that last started with it.
    """

    tenant_id: TenantId
    name: str
    variables: tuple[str, ...]
    sealed: bytes
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None = None
    last_used_by: BuilderId | None = None

    @property
    def associated_data(self) -> str:
        """Associated data that the vault binds the values to."""
        return associated_data_of(self.tenant_id, self.name)


def associated_data_of(tenant_id: TenantId, name: str) -> str:
    """Return the associated data of a credential: ``credential/<tenant>/<name>``."""
    return f"credential/{tenant_id}/{name}"


def pack(values: Mapping[str, str]) -> bytes:
    """Serialize the values to the bytes that are sealed."""
    return json.dumps(dict(values), ensure_ascii=True).encode()


def unpack(packed: bytes) -> dict[str, str]:
    """The inverse of ``pack``."""
    values: dict[str, str] = json.loads(packed)
    return values


def name_error(name: str) -> str | None:
    """Return the reason to reject a name, or None."""
    if NAME.fullmatch(name):
        return None
    return "must be 1 to 63 lower-case letters, digits, - and _, and begin and end with a letter or digit"
