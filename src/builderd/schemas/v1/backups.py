"""Backups, copies of a builder's files at one moment, and kept results of builds."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.backups import BackupKind, BackupStatus
from builderd.schemas.v1.builders import Name
from builderd.schemas.v1.shape import Page, Shape, Success, Time, View


class Backup(View):
    """Backup of a builder's files at ``created_at``, when it had ``version``.

    ``size_bytes`` is the size of the files, ``added_bytes`` the growth of the repository; both 0 until it is ``done``.
    ``error`` says why it failed, ``fault`` is the damage that a drill or a check found in it.
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
    """Page of backups, newest first."""


class NewRestore(Shape):
    """Options of a restore."""

    as_: Name | None = Field(
        default=None, alias="as", description="The name of a new builder to make of it; the present one stays as it is."
    )


class NewBuilderOfBackup(Shape):
    """New builder to make of a backup."""

    as_: Name = Field(alias="as", description="The name of the new builder to make of it.")


class RemovedBuilds(View):
    """Number of removed ``results``, and the ``bytes`` that they took."""

    results: int
    bytes: int


class RemovedBuildsAnswer(Success[RemovedBuilds]):
    """Answer with the removed results."""
