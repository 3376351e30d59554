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
#: Of all variables of one credential, names and values.
MAX_BYTES = 64_000
#: Of one tenant.
MAX_CREDENTIALS = 500


@dataclass(frozen=True, slots=True)
class Credential:
    """``variables`` names what is sealed, in order. ``last_used_by`` is the builder that last started with it."""

    tenant_id: TenantId
    name: str
    variables: tuple[str, ...]
    sealed: bytes
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None = None
    last_used_by: BuilderId | None = None

    @property
    def place(self) -> str:
        """Where it is stored, to which the vault binds it."""
        return associated_data_of(self.tenant_id, self.name)


def associated_data_of(tenant_id: TenantId, name: str) -> str:
    """What the vault is told of a credential's place."""
    return f"credential/{tenant_id}/{name}"


def pack(values: Mapping[str, str]) -> bytes:
    """The values as they are sealed."""
    return json.dumps(dict(values), ensure_ascii=True).encode()


def unpack(packed: bytes) -> dict[str, str]:
    """The inverse of ``pack``."""
    values: dict[str, str] = json.loads(packed)
    return values


def name_error(name: str) -> str | None:
    """Why a name is refused, or None."""
    if NAME.fullmatch(name):
        return None
    return "must be 1 to 63 lower-case letters, digits, - and _, and begin and end with a letter or digit"
