"""Backups: copies of a builder's files at one moment."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.backups import BackupKind, BackupStatus
from builderd.wire.v1.builders import Name
from builderd.wire.v1.envelope import Page, Success, Time
from builderd.wire.v1.shape import Shape, View


class Backup(View):
    """``created_at`` is the moment whose files it holds, ``version`` the builder's version of then.

    ``size_bytes`` is what the files hold, ``added_bytes`` what the archive grew by; both are 0 until it is ``done``.
    ``error`` says why it failed, ``fault`` what the last drill found wrong with it.
    """

    id: str
    builder: str
    builder_name: str
    kind: BackupKind
    status: BackupStatus
    version: int
    created_at: Time
    finished_at: Time | None
    files: int
    size_bytes: int
    added_bytes: int
    error: str
    last_verified_at: Time | None
    fault: str
    expires_at: Time | None


class BackupAnswer(Success[Backup]):
    """One backup."""


class BackupPage(Page[Backup]):
    """Backups, a page of them, the newest first."""


class NewRestore(Shape):
    """How a backup is restored."""

    as_: Name | None = Field(
        default=None, alias="as", description="The name of a new builder to make of it; the present one stays as it is."
    )


class NewBuilderOfBackup(Shape):
    """What a backup becomes."""

    as_: Name = Field(alias="as", description="The name of the new builder to make of it.")
