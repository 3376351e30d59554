"""A run without room names the place that is full, and when waiting helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builderd.adapters.backup_repositories.restic.repository import ResticRepository
from builderd.adapters.backup_repositories.restic.runs import RETRY_FULL, RepositoryLocation
from builderd.domain.errors import NoCapacity
from builderd.domain.ids import BackupId, BuilderId, DiskId, TenantId, new_id
from builderd.ports.backup_repository import SaveRequest, TenantRepository
from builderd.ports.engine import Progress, Tool, ToolExit

REPOSITORY = TenantRepository(TenantId(new_id()), b"k" * 32)
DISK = DiskId(new_id())
SNAPSHOT = "0" * 64
NO_SPACE = {"message_type": "error", "error": {"message": "write: no space left on device"}, "during": "restore"}
LISTED = {"digest": "d", "files": 1, "bytes": 10, "stored": 10}


class FullTools:
    """Runs of restic that find no room: for the manifest, or for the files behind it."""

    def __init__(self, *, manifest: bool, store_full: bool = False) -> None:
        self._manifest = manifest
        self._store_full = store_full

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        if "restic" not in tool.argv[0]:
            output(json.dumps(LISTED))
            return ToolExit(0)
        is_manifest = "/manifest" in tool.argv
        if is_manifest is not self._manifest:
            return ToolExit(0)
        output(json.dumps(NO_SPACE))
        return ToolExit(1, store_full=self._store_full)


def _repository(folder: Path, tools: FullTools, tenant_share: float = 1) -> ResticRepository:
    location = RepositoryLocation(str(folder / "repositories"))
    return ResticRepository(lambda: tools, location, folder / "restic", "mine", tenant_share=tenant_share)


@pytest.mark.parametrize("store_full", [True, False])
async def test_manifest_without_room_names_the_data_directory(tmp_path: Path, store_full: bool) -> None:
    repository = _repository(tmp_path, FullTools(manifest=True, store_full=store_full))
    with pytest.raises(NoCapacity, match="service's data directory is full") as told:
        await repository.restore(REPOSITORY, SNAPSHOT, DISK, lambda _: None)
    assert told.value.retry_after == RETRY_FULL


@pytest.mark.parametrize(
    ("store_full", "text", "retry_after"),
    [(True, "store for apps and layers is full", RETRY_FULL), (False, "deploy a version with a larger disk", None)],
)
async def test_restore_without_room_says_when_waiting_helps(
    tmp_path: Path, store_full: bool, text: str, retry_after: int | None
) -> None:
    repository = _repository(tmp_path, FullTools(manifest=False, store_full=store_full))
    with pytest.raises(NoCapacity, match=text) as told:
        await repository.restore(REPOSITORY, SNAPSHOT, DISK, lambda _: None)
    assert told.value.retry_after == retry_after


async def test_backup_beyond_its_tenants_share_is_not_to_be_retried(tmp_path: Path) -> None:
    repository = _repository(tmp_path, FullTools(manifest=False), tenant_share=0)
    request = SaveRequest(BackupId(new_id()), BuilderId(new_id()), DISK, 1 << 30)
    with pytest.raises(NoCapacity, match="a tenant may have") as told:
        await repository.save(REPOSITORY, request, lambda _: None)
    assert told.value.retry_after is None, "the tenant must remove something"
