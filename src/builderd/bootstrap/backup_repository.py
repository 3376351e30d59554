"""Build the restic repositories that backups are stored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from builderd.adapters.backup_repositories.restic.repository import ResticRepository
from builderd.adapters.backup_repositories.restic.runs import RepositoryLocation
from builderd.bootstrap.data_directory import identity
from builderd.domain.errors import ValidationFailed
from builderd.domain.resources import GB
from builderd.ports.engine import Tools
from builderd.settings import Settings


def make_backup_repository(settings: Settings, tools: Callable[[], Tools]) -> ResticRepository:
    """Build the repository of all apps' backups. Raises ``ValidationFailed`` for a key file that cannot be read."""
    root, floor = _backups(settings), int(settings.store.floor * GB)
    name, share = identity(settings.data_dir)[:13], settings.backup.tenant_share
    return ResticRepository(tools, make_location(settings), root, name, floor_bytes=floor, tenant_share=share)


def make_location(settings: Settings) -> RepositoryLocation:
    """Return the location and credentials of the tenants' repositories."""
    backup = settings.backup
    return RepositoryLocation(
        base=backup.repository or str(_backups(settings) / "repositories"),
        environment={name: value.get_secret_value() for name, value in backup.environment.items()},
        ssh_key=_text("backup.ssh_key", backup.ssh_key),
        ssh_hosts=_text("backup.ssh_hosts", backup.ssh_hosts),
    )


def _backups(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "backups"


def _text(setting: str, file: Path | None) -> str:
    try:
        return file.read_text().strip() if file else ""
    except OSError as error:
        raise ValidationFailed({setting: [f"{file} cannot be read: {error.strerror}"]}) from None
