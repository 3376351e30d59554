"""The backup repositories that keep the contract, each with the engine whose disks it saves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.backends import rest_server, sftp_server
from tests.engines import prepared, settings_in
from tests.fakes.backup_repository import FakeBackupRepository
from tests.fakes.engine import FakeEngine
from tests.weak_keys import make_repository

from builderd.backups.port import BackupRepository, TenantRepository
from builderd.backups.restic.repository import ResticRepository
from builderd.backups.restic.runs import RepositoryLocation
from builderd.core.ids import DiskId, TenantId, new_id
from builderd.core.resources import GB
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.storage.disks import APP_OWNER
from builderd.engine.port import Engine, EngineOptions


@dataclass
class Scene:
    """A backup repository, and what a test does with a disk."""

    backup_repository: BackupRepository
    engine: Engine
    #: Where the files of a real repository are.
    folder: Path
    location: RepositoryLocation | None = None

    def repository(self) -> TenantRepository:
        """Return the repository of a new tenant; in a folder it is there, with a key that opens at once."""
        repository = TenantRepository(TenantId(new_id()), b"k" * 32)
        if self.location and self.location.is_local:
            make_repository(self.location.folder(repository.tenant_id), repository.key.hex())
        return repository

    async def disk(self, **files: bytes) -> DiskId:
        disk = DiskId(new_id())
        await self.engine.disks.create_disk(disk, GB)
        for name, content in files.items():
            self.write(disk, name, content)
        return disk

    def write(self, disk: DiskId, name: str, content: bytes) -> None:
        if isinstance(self.engine, FakeEngine):
            self.engine.known_disks[disk].files[name] = content
            return
        path = self.app(disk) / name
        path.write_bytes(content)
        os.chown(path, APP_OWNER, APP_OWNER)

    def read(self, disk: DiskId) -> dict[str, bytes]:
        if isinstance(self.engine, FakeEngine):
            return self.engine.known_disks[disk].files
        return {path.name: path.read_bytes() for path in self.app(disk).iterdir()}

    def damage(self, snapshot: str) -> None:
        """Overwrite a part of the stored content: of this snapshot in the fake, of the largest pack otherwise."""
        if isinstance(self.backup_repository, FakeBackupRepository):
            self.backup_repository.damage(snapshot)
            return
        packs = [path for path in self.folder.rglob("data/*/*") if len(path.name) == 64]
        pack = max(packs, key=lambda path: path.stat().st_size)
        pack.chmod(0o600)
        with pack.open("r+b") as file:
            file.seek(pack.stat().st_size // 2)
            file.write(b"damage" * 100)

    def app(self, disk: DiskId) -> Path:
        assert isinstance(self.engine, OciEngine)
        return self.engine._here.disks.app(disk)


#: To restic they are three addresses. The acceptance tests of every run have the one behind HTTP.
REAL = [
    pytest.param("folder", marks=pytest.mark.root),
    pytest.param("rest", marks=[pytest.mark.root, pytest.mark.slow]),
    pytest.param("sftp", marks=[pytest.mark.root, pytest.mark.slow]),
]


@pytest.fixture(params=["fake", *REAL])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    if request.param == "fake":
        fake = FakeEngine()
        yield Scene(FakeBackupRepository(fake), fake, tmp_path)
        return
    with _location(request.param, tmp_path) as location:
        async with prepared(request.getfixturevalue("archive_settings")) as engine:
            yield Scene(
                ResticRepository(lambda: engine.tools, location, tmp_path / "restic", "contract"),
                *(engine, tmp_path, location),
            )


@contextmanager
def _location(kind: str, folder: Path) -> Iterator[RepositoryLocation]:
    """A folder, and real servers."""
    match kind:
        case "folder":
            yield RepositoryLocation(str(folder / "repositories"))
        case "rest":
            with rest_server(folder / "rest") as server:
                yield RepositoryLocation(server.url)
        case _:
            with sftp_server(folder / "sftp") as server:
                yield RepositoryLocation(
                    server.url, ssh_key=server.key.read_text().strip(), ssh_hosts=server.hosts.read_text()
                )


@pytest.fixture(scope="session")
def archive_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    settings = settings_in(tmp_path_factory.mktemp("archive"))
    yield settings
    asyncio.run(OciEngine(settings).down())
