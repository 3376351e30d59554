"""Builders and their versions: state, costs, backups."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from builderd.client.models.base import Model


class Stage(Model):
    """Stage of a deployment that has ended: ``review``, ``install``, ``build``, ``release``, ``start`` or ``qa``."""

    stage: str
    seconds: float
    ok: bool


class Cost(Model):
    """Costs so far. ``hourly_rate`` while it runs, with 4 digits; ``runtime_hours``; ``cost`` with 2 digits."""

    currency: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class Resources(Model):
    """Resources: vCPU, and GB (2^30 bytes) of memory and disk."""

    cpu: float
    memory: float
    disk: float


class BuilderState(Model):
    """A builder with its current version.

    ``service_token`` is in full for tokens that may write; others see ``…`` and its end.
    ``needs_restart``: it runs with credentials that were changed since it started.
    ``last_backup_error`` is null unless the last backup failed or is damaged. ``disk_released_at`` is when one that
    never came up gave its disk back; its next start makes a new one. ``member`` is the member of the cluster on which
    it was last started, empty on a single machine.
    ``review_passed`` and ``qa_passed`` are null until that gate has judged the version.
    """

    uuid: str
    name: str
    status: str
    preview_url: str
    service_token: str
    entrypoint: str
    port: int
    job_type: str
    env: dict[str, str]
    resources: Resources
    visibility: str
    auto_stop_interval: int
    backup_interval_hours: int
    credentials: list[str]
    needs_restart: bool
    isolation: str
    require_qa: bool
    install_scripts: bool
    build: str = ""
    release: str = ""
    start_timeout: int = 0
    protocol: str = "http"
    root: str = ""
    env_file: str = ""
    env_file_values: dict[str, str] = Field(default_factory=dict)
    review_passed: bool | None = None
    qa_passed: bool | None = None
    status_reason: str
    version: int
    exit_code: int | None = None
    cost: Cost
    created_at: datetime
    updated_at: datetime
    last_active_at: datetime | None = None
    last_backup_at: datetime | None = None
    last_backup_error: str | None = None
    disk_released_at: datetime | None = None
    member: str = ""


class Version(Model):
    """Version of a builder with its settings.

    ``status``: ``pending`` while it is reviewed, installed and started or waits for the next start, ``deployed`` once
    it was up, ``failed`` with its ``status_reason`` and the ``failure_code`` that its call was answered with.
    ``current`` is the one that serves or starts next. ``bundle`` is the sha256 of its files.
    """

    version: int
    status: str
    status_reason: str
    failure_code: str | None = None
    current: bool
    rolled_back_to: int | None = None
    bundle: str
    entrypoint: str
    port: int
    env: dict[str, str]
    resources: Resources
    isolation: str
    credentials: list[str]
    skip_review: bool
    skip_qa: bool
    require_qa: bool
    install_scripts: bool
    build: str = ""
    release: str = ""
    stdin: str = ""
    start_timeout: int = 0
    protocol: str = "http"
    root: str = ""
    env_file: str = ""
    env_file_values: dict[str, str] = Field(default_factory=dict)
    review_passed: bool | None = None
    qa_passed: bool | None = None
    created_by: str
    created_at: datetime


class FileDifference(Model):
    """Difference of one file: ``kind`` is ``added``, ``removed`` or ``changed``, ``lines`` a unified diff without head.

    ``compared`` is false, and ``lines`` empty, for a binary or very long file, and beyond the limits of the answer.
    """

    path: str
    kind: str
    compared: bool
    added: int
    removed: int
    lines: list[str]


class SettingDifference(Model):
    """Setting with its value in the one version and in the other."""

    name: str
    old: Any = None
    new: Any = None


class VersionDiff(Model):
    """Difference of two versions."""

    old: int
    new: int
    files: list[FileDifference]
    settings: list[SettingDifference]


class Backup(Model):
    """Backup of a builder's files at ``created_at``, when it had ``version``.

    ``size_bytes`` is the size of the files, ``added_bytes`` the growth of the repository; both 0 until it is ``done``.
    ``error`` says why it failed, ``fault`` is the damage that a drill or a check found in it.
    """

    id: str
    builder: str
    builder_name: str
    kind: str
    status: str
    version: int
    created_at: datetime
    finished_at: datetime | None = None
    files: int
    size_bytes: int
    added_bytes: int
    error: str
    last_verified_at: datetime | None = None
    fault: str
    expires_at: datetime | None = None


class SshGrant(Model):
    """SSH token with its command.

    ``token`` is the user name and shown only once. ``known_hosts`` is a line that trusts the gateway.
    """

    ssh_command: str
    token: str
    expires_at: datetime
    host: str
    port: int
    fingerprint: str
    known_hosts: str


class SshEnded(Model):
    """Builder whose SSH tokens were all revoked."""

    uuid: str
