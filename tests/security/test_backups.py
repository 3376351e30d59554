"""Hostile disks and damaged repositories: restic is not misled, and failures are reported."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.contract.backup_repository.conftest import Scene
from tests.engines import prepared, settings_until_down

from builderd.backups.port import SaveRequest, SnapshotSummary, TenantRepository
from builderd.backups.restic.repository import ResticRepository
from builderd.backups.restic.runs import RepositoryLocation
from builderd.core.errors import BackupFailed, NoCapacity
from builderd.core.ids import BackupId, BuilderId, DiskId, TenantId, new_id
from builderd.engine.oci.storage.disks import APP_OWNER
from builderd.engine.port import EngineOptions, Tool

pytestmark = pytest.mark.root

LIMIT = 1 << 30
BUILDER = BuilderId(new_id())
HOSTILE_NAMES = (
    b"--exclude=*",
    b"-rf",
    b"line\nbreak",
    b"tab\there",
    b"\xff\xfe not utf-8",
    b'{"message_type":"summary","snapshot_id":"0"}',
    b"$(touch pwned)`touch pwned`;touch pwned",
    b" leading and trailing ",
    b"*?[a-z]",
    b"\x1b[31mred",
    b"\\0",
    b"a" * 255,
    "\u202eright-to-left".encode(),
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    with settings_until_down(tmp_path_factory.mktemp("hostile")) as found:
        yield found


@pytest.fixture
async def scene(settings: EngineOptions, tmp_path: Path) -> AsyncIterator[Scene]:
    location = RepositoryLocation(str(tmp_path / "repositories"))
    async with prepared(settings) as engine:
        yield Scene(
            ResticRepository(lambda: engine.tools, location, tmp_path / "restic", "mine"),
            *(engine, tmp_path, location),
        )


@pytest.fixture
def repository(scene: Scene) -> TenantRepository:
    return scene.repository()


async def _save(scene: Scene, repository: TenantRepository, disk: DiskId, limit: int = LIMIT) -> SnapshotSummary:
    return await scene.backup_repository.save(
        repository, SaveRequest(BackupId(new_id()), BUILDER, disk, limit), lambda _: None
    )


async def _restored(scene: Scene, repository: TenantRepository, saved: SnapshotSummary) -> Path:
    disk = await scene.disk()
    await scene.backup_repository.restore(repository, saved.snapshot, disk, lambda _: None)
    return scene.app(disk)


def _own(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, APP_OWNER, APP_OWNER, follow_symlinks=False)


def _fill_with_traps(root: Path) -> None:
    for name in HOSTILE_NAMES:
        (root / os.fsdecode(name)).write_bytes(b"content of " + name)
    for link, target in {"passwd": "/etc/passwd", "root": "/", "up": "../../..", "self": "self", "no": "/n"}.items():
        (root / link).symlink_to(target)
    (root / "deep").mkdir()
    (root / "deep/escape").symlink_to("/repository")
    os.mkfifo(root / "pipe", 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
    secret = root / "unreadable"
    secret.write_bytes(b"mode 000")
    secret.chmod(0)
    closed = root / "closed"
    closed.mkdir()
    (closed / "inside").write_bytes(b"in a closed folder")
    (root / "linked").hardlink_to(root / "-rf")
    program = root / "run me"
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o755)


async def test_hostile_names_links_and_special_files_are_restored_unchanged(
    scene: Scene, repository: TenantRepository
) -> None:
    disk = await scene.disk()
    app = scene.app(disk)
    _fill_with_traps(app)
    _own(app)
    (app / "closed").chmod(0)
    back = await _restored(scene, repository, await _save(scene, repository, disk))
    names = {os.fsencode(path.name) for path in back.iterdir()}
    assert names == {os.fsencode(path.name) for path in app.iterdir()} - {b"sock"}
    for name in HOSTILE_NAMES:
        assert (back / os.fsdecode(name)).read_bytes() == b"content of " + name
    assert (back / "passwd").readlink() == Path("/etc/passwd")
    assert (back / "root").is_symlink()
    assert stat.S_ISFIFO((back / "pipe").stat().st_mode)
    assert (back / "unreadable").stat().st_mode & 0o777 == 0
    assert (back / "closed/inside").read_bytes() == b"in a closed folder"
    assert (back / "linked").stat().st_ino == (back / "-rf").stat().st_ino
    assert all(path.lstat().st_uid == APP_OWNER for path in back.rglob("*"))
    assert not list(back.rglob("pwned"))


async def test_link_is_backed_up_without_its_target(scene: Scene, repository: TenantRepository) -> None:
    disk = await scene.disk()
    (scene.app(disk) / "out").symlink_to("/proc/1/environ")
    (scene.app(disk) / "folder").symlink_to("/usr")
    saved = await _save(scene, repository, disk)
    assert (saved.files, saved.size_bytes) == (0, 0)


@pytest.mark.slow
async def test_sparse_files_are_restored_sparse_and_absurd_ones_refused(
    scene: Scene, repository: TenantRepository
) -> None:
    disk = await scene.disk()
    hole = scene.app(disk) / "hole"
    with hole.open("wb") as file:
        file.truncate(200_000_000)
    _own(scene.app(disk))
    back = await _restored(scene, repository, await _save(scene, repository, disk))
    assert (back / "hole").stat().st_size == 200_000_000
    assert (back / "hole").stat().st_blocks * 512 < 1_000_000
    with hole.open("wb") as file:
        file.truncate(8 << 50)
    with pytest.raises(BackupFailed, match="hole"):
        await _save(scene, repository, disk)


async def test_too_long_path_fails_the_backup_with_an_event(scene: Scene, repository: TenantRepository) -> None:
    disk = await scene.disk()
    here = os.open(scene.app(disk), os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    with pytest.raises(BackupFailed, match="cannot be read"):
        await _save(scene, repository, disk)


async def test_restore_to_a_too_small_disk_fails_within_its_limit(scene: Scene, repository: TenantRepository) -> None:
    saved = await _save(scene, repository, await scene.disk(big=os.urandom(8_000_000)))
    small = DiskId(new_id())
    await scene.engine.disks.create_disk(small, 5_000_000)
    with pytest.raises(NoCapacity, match="deploy a version with a larger disk") as told:
        await scene.backup_repository.restore(repository, saved.snapshot, small, lambda _: None)
    assert told.value.retry_after is None, "waiting makes no disk larger"
    await scene.engine.disks.delete_disk(small)


async def test_tool_has_one_disk_no_network_and_no_privileges(scene: Scene) -> None:
    disk = await scene.disk(note=b"read me")
    lines: list[str] = []
    look = (
        "id -u; cat /disk/note; echo; cat /proc/self/status | grep -E 'CapEff|NoNewPrivs|Seccomp:'; "
        "touch /disk/new; touch /new; ls /data /var/lib/builderd-host; cat /proc/net/dev | tail -n +3 | wc -l; "
        "mount -t tmpfs none /tmp; unshare -U true"
    )
    await scene.engine.tools.run_tool(Tool(("sh", "-c", look), disk=disk), lines.append)
    text = "\n".join(lines)
    assert lines[:2] == ["1000", "read me"]
    assert "CapEff:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text
    assert text.count("Read-only file system") == 2
    assert text.count("No such file or directory") == 2
    assert "unshare failed" in text or "Operation not permitted" in text


async def test_backup_tool_can_read_all_files_and_write_none(scene: Scene) -> None:
    disk = await scene.disk(note=b"x")
    lines: list[str] = []
    tool = Tool(
        ("sh", "-c", "grep CapEff /proc/self/status; cat /etc/shadow >/dev/null; echo"), {}, disk, reads_all=True
    )
    await scene.engine.tools.run_tool(tool, lines.append)
    assert lines[0] == "CapEff:\t0000000000000004"


@pytest.mark.slow
async def test_stale_own_lock_is_removed_and_foreign_lock_respected(
    scene: Scene, repository: TenantRepository, tmp_path: Path
) -> None:
    disk = await scene.disk(note=b"1")
    saved = await _save(scene, repository, disk)
    await _leave_lock(scene, repository, "mine")
    await scene.backup_repository.forget(repository, [saved.snapshot])
    await _save(scene, repository, disk)
    await _leave_lock(scene, repository, "somebody-else")
    with pytest.raises(BackupFailed, match="locked by another service"):
        await scene.backup_repository.prune(repository)


async def _leave_lock(scene: Scene, repository: TenantRepository, name: str) -> None:
    """Kill a run in the middle, so that its lock stays; once more where it was over before that."""
    assert isinstance(scene.backup_repository, ResticRepository)
    folder = scene.backup_repository._context.location.folder(repository.tenant_id)
    script = (
        # A lock has another name until all of it is written.
        "locked() { ls /repository/locks | grep -qv tmp; }; "
        "until locked; do restic --no-cache check --read-data >/dev/null & "
        "while kill -0 $! 2>/dev/null && ! locked; do sleep 0.002; done; kill -9 $!; wait $!; done"
    )
    tool = Tool(
        ("sh", "-c", script, "restic"),
        {"RESTIC_REPOSITORY": "/repository", "RESTIC_PASSWORD": repository.key.hex()},
        folders={"repository": folder},
        hostname=name,
    )
    await scene.engine.tools.run_tool(tool, print)
    assert any("tmp" not in lock.name for lock in (folder / "locks").iterdir()), "it tidied up before it was killed"


async def test_check_and_restore_report_a_damaged_repository(scene: Scene, repository: TenantRepository) -> None:
    saved = await _save(scene, repository, await scene.disk(big=os.urandom(3_000_000)))
    scene.damage(saved.snapshot)
    with pytest.raises(BackupFailed):
        await scene.backup_repository.check(repository, 100)
    with pytest.raises(BackupFailed):
        await scene.backup_repository.restore(repository, saved.snapshot, await scene.disk(), lambda _: None)


async def test_backup_that_would_fill_the_host_is_refused(scene: Scene, repository: TenantRepository) -> None:
    assert isinstance(scene.backup_repository, ResticRepository)
    scene.backup_repository._floor = 1 << 60
    with pytest.raises(NoCapacity, match="free"):
        await _save(scene, repository, await scene.disk(note=b"1"))


MB = 1_000_000


def _fake_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the file system of the repositories have this many bytes free."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))


@pytest.mark.slow
async def test_attributes_and_empty_files_count_in_backup_size(
    scene: Scene, repository: TenantRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(scene.backup_repository, ResticRepository)
    scene.backup_repository._floor = 8 * MB
    attributes, names = await scene.disk(), await scene.disk()
    for number in range(10):
        file = scene.app(attributes) / str(number)
        file.touch()
        for name in range(20):
            os.setxattr(file, f"user.{name}", os.urandom(15_000))
    for number in range(5_000):
        (scene.app(names) / f"{number}").touch()
    _own(scene.app(attributes))
    _own(scene.app(names))
    _fake_free(monkeypatch, 10 * MB)
    for disk in (attributes, names):
        with pytest.raises(NoCapacity, match="free"):
            await _save(scene, repository, disk)
    back = await _restored(scene, repository, await _save_with(scene, repository, attributes, monkeypatch))
    assert len(os.listxattr(back / "0")) == 20


async def _save_with(
    scene: Scene, repository: TenantRepository, disk: DiskId, monkeypatch: pytest.MonkeyPatch
) -> SnapshotSummary:
    _fake_free(monkeypatch, 100 * MB)
    return await _save(scene, repository, disk)


@pytest.mark.slow
async def test_backups_of_one_tenant_are_limited_to_their_share(
    scene: Scene, repository: TenantRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(scene.backup_repository, ResticRepository)
    scene.backup_repository._tenant_share = 0.5
    _fake_free(monkeypatch, 8 * MB)
    await _save(scene, repository, await scene.disk(big=os.urandom(3 * MB)))
    _fake_free(monkeypatch, 5 * MB)
    with pytest.raises(NoCapacity, match="sets the share"):
        await _save(scene, repository, await scene.disk(big=os.urandom(3 * MB)))
    other = TenantRepository(TenantId(new_id()), b"o" * 32)
    await _save(scene, other, await scene.disk(big=os.urandom(2 * MB)))
