"""Uploads in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.files import Upload
from builderd.domain.ids import TenantId, UploadId
from builderd.store.tables import uploads
from builderd.store.types import omit, row_of

_by_id = uploads.c.id == bindparam("upload")

_INSERT = insert(uploads)
_SELECT = select(uploads).where(_by_id)
_UPDATE = update(uploads).where(_by_id)
_DELETE = delete(uploads).where(_by_id)
_OF_TENANT = select(uploads).where(uploads.c.tenant_id == bindparam("tenant")).order_by(uploads.c.created_at)
_LIVE = select(uploads.c.id).where(uploads.c.expires_at > bindparam("now"))
_EXPIRED = select(uploads.c.id).where(uploads.c.expires_at <= bindparam("now"))


class Uploads:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, upload: Upload) -> None:
        self._connection.execute(_INSERT, row_of(upload))

    def get(self, upload: UploadId) -> Upload | None:
        row = self._connection.execute(_SELECT, {"upload": upload}).mappings().first()
        return Upload(**row) if row else None

    def save(self, upload: Upload) -> bool:
        """Save it; return False, and save nothing, if it was deleted."""
        return self._connection.execute(_UPDATE, {"upload": upload.id, **omit(row_of(upload), "id")}).rowcount > 0

    def of_tenant(self, tenant: TenantId) -> Sequence[Upload]:
        """Return the tenant's uploads, oldest first, expired ones included until they are deleted."""
        return [Upload(**row) for row in self._connection.execute(_OF_TENANT, {"tenant": tenant}).mappings()]

    def live(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' uploads that have not expired."""
        return [UploadId(row.id) for row in self._connection.execute(_LIVE, {"now": now})]

    def expired(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' expired uploads."""
        return [UploadId(row.id) for row in self._connection.execute(_EXPIRED, {"now": now})]

    def delete(self, upload: UploadId) -> None:
        """Delete it. Idempotent."""
        self._connection.execute(_DELETE, {"upload": upload})
