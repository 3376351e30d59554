"""Restic's repository: a full place has its name, errors no secrets, and files limits of their sizes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from builderd.backups.port import SaveRequest, TenantRepository
from builderd.backups.restic.measure import measure
from builderd.backups.restic.repository import ResticRepository
from builderd.backups.restic.runs import RETRY_FULL, RepositoryLocation, explain, is_full, parse
from builderd.core.errors import NoCapacity
from builderd.core.ids import BackupId, BuilderId, DiskId, TenantId, new_id
from builderd.engine.port import Progress, Tool, ToolExit

REPOSITORY = TenantRepository(TenantId(new_id()), b"k" * 32)
DISK = DiskId(new_id())
SNAPSHOT = "0" * 64
NO_SPACE = {"message_type": "error", "error": {"message": "write: no space left on device"}, "during": "restore"}


class FullTools:
    """Runs of restic that find no room for the files."""

    def __init__(self, *, store_full: bool = False) -> None:
        self._store_full = store_full

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        if "restic" not in tool.argv[0]:
            output(json.dumps({"stored": 10}))
            return ToolExit(0)
        output(json.dumps(NO_SPACE))
        return ToolExit(1, store_full=self._store_full)


def _repository(folder: Path, tools: FullTools, tenant_share: float = 1) -> ResticRepository:
    location = RepositoryLocation(str(folder / "repositories"))
    return ResticRepository(lambda: tools, location, folder / "restic", "mine", tenant_share=tenant_share)


@pytest.mark.parametrize(
    ("store_full", "text", "retry_after"),
    [(True, "store for apps and layers is full", RETRY_FULL), (False, "deploy a version with a larger disk", None)],
)
async def test_restore_without_room_says_when_waiting_helps(
    tmp_path: Path, store_full: bool, text: str, retry_after: int | None
) -> None:
    repository = _repository(tmp_path, FullTools(store_full=store_full))
    with pytest.raises(NoCapacity, match=text) as told:
        await repository.restore(REPOSITORY, SNAPSHOT, DISK, lambda _: None)
    assert told.value.retry_after == retry_after


async def test_backup_beyond_its_tenants_share_is_not_to_be_retried(tmp_path: Path) -> None:
    repository = _repository(tmp_path, FullTools(), tenant_share=0)
    request = SaveRequest(BackupId(new_id()), BuilderId(new_id()), DISK, 1 << 30)
    with pytest.raises(NoCapacity, match="a tenant may have") as told:
        await repository.save(REPOSITORY, request, lambda _: None)
    assert told.value.retry_after is None, "the tenant must remove something"


def test_disk_is_measured_up_to_the_limit_of_its_claims(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "big").write_bytes(b"x" * 1000)
    disk = os.fsencode(tmp_path)
    assert measure(disk, 999) == {"too_much": "folder/big"}
    assert 2000 < int(str(measure(disk, 1000)["stored"])) < 3000


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "restic printed nothing"),
        (["Fatal: unable to open repository"], 'restic printed: "Fatal: unable to open repository"'),
        (['{"message_type":"exit_error","code":1,"message":"Fatal: no space"}'], 'restic printed: "Fatal: no space"'),
        # Of no kind that is known: better than no reason.
        (['{"message_type":"new_kind","reason":"disk"}'], '{"message_type": "new_kind", "reason": "disk"}'),
        (['{"message_type":"summary"}', '{"message_type":"error","error":{"message":"bad"}}'], 'restic printed: "bad"'),
        (["a\x1b[31mb\u202ec"], 'restic printed: "a?[31mb?c"'),
    ],
)
def test_the_last_errors_are_quoted(lines: list[str], expected: str) -> None:
    assert expected in explain(parse(line) for line in lines)


def test_secrets_are_left_out_also_where_a_line_is_cut() -> None:
    for padding in range(270, 300):
        lines = [f"{'x' * padding} hunter2hunter2 https://me:pw@host/"]
        shown = explain([parse(line) for line in lines], ["hunter2hunter2", "x"])
        assert "hunter" not in shown
        assert "pw@" not in shown


def _error(text: str, **more: str) -> str:
    return json.dumps({"message_type": "error", "error": {"message": text}, **more})


FULL = "write /disk/big: no space left on device"


@pytest.mark.parametrize(
    ("line", "target", "repository"),
    [
        (_error(FULL, during="restore", item="/big"), True, False),
        (_error("mkdir /disk/a: disk quota exceeded", during="restore"), True, False),
        (_error("write /disk/no space left on device: input/output error", during="restore"), False, False),
        (
            _error("symlink /repository/a: no space left on device /disk/b: permission denied", during="restore"),
            False,
            False,
        ),
        # A file that cannot be read, in a backup.
        (_error(FULL, during="scan"), False, False),
        (
            '{"message_type":"exit_error","message":"unable to create lock: write /r/l: no space left on device"}',
            False,
            True,
        ),
        ('{"message_type":"exit_error","message":"Fatal: There were 8 errors"}', False, False),
        # Plain text: a name with a line break could be all of it.
        (FULL, False, False),
    ],
)
def test_last_words_of_an_error_say_that_a_disk_or_repository_is_full(
    line: str, target: bool, repository: bool
) -> None:
    messages = [parse(line)]
    assert is_full(messages, during="restore") is target
    assert is_full(messages) is repository
