"""Restic's repository: a full place has its name, errors no secrets, and lists of files have limits."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from builderd.backups.port import SaveRequest, TenantRepository
from builderd.backups.restic import manifest
from builderd.backups.restic.repository import ResticRepository
from builderd.backups.restic.runs import RETRY_FULL, RepositoryLocation, explain, is_full, parse
from builderd.core.errors import NoCapacity
from builderd.core.ids import BackupId, BuilderId, DiskId, TenantId, new_id
from builderd.engine.port import Progress, Tool, ToolExit

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


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The disk, and the folder of the list."""
    disk, work = tmp_path / "disk", tmp_path / "work"
    for folder in (disk, work):
        folder.mkdir()
    monkeypatch.setattr(manifest, "DISK", os.fsencode(disk))
    monkeypatch.setattr(manifest, "LIST", os.fsencode(work / "manifest"))
    return disk, work


def _record(limit: int, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert manifest.main(["record", str(limit)]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_a_list_that_grows_too_long_is_not_kept(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, work = folders
    monkeypatch.setattr(manifest, "LEAST_LIST", 0)
    (disk / "a").touch()
    assert _record(64 * 1000, capsys)["files"] == 1
    before = (work / "manifest").read_bytes()
    for number in range(10):
        (disk / f"{number}-{'x' * 200}").touch()
    assert str(_record(64 * 1000, capsys)["too_long"]).endswith("x" * 200)
    assert [path.name for path in work.iterdir()] == ["manifest"]
    assert (work / "manifest").read_bytes() == before
    assert _record(64 * 10_000, capsys)["files"] == 11


def test_files_that_claim_too_much_leave_no_list(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk, work = folders
    (disk / "big").write_bytes(b"x" * 1000)
    assert _record(999, capsys) == {"too_much": "big"}
    assert list(work.iterdir()) == []


def test_a_list_without_room_is_no_fault_of_the_files(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, work = folders

    def full(*_: object) -> dict[str, object]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest, "_write", full)
    assert _record(1000, capsys) == {"full": "No space left on device"}
    assert list(work.iterdir()) == []


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
