"""Backups in restic repositories, one a tenant. Implements ``backups.port.BackupRepository``.

restic runs in a sandbox as a tool of the engine: it sees only one disk and one repository, and has no network unless
the repository is remote.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builderd.backups.port import (
    OnProgress,
    RepositoryDamaged,
    SaveRequest,
    SnapshotDamaged,
    SnapshotRecord,
    SnapshotSummary,
    TenantRepository,
)
from builderd.backups.restic import runs
from builderd.backups.restic.runs import (
    KEPT_LINES,
    LONG,
    QUICK,
    RETRY_FULL,
    NoRepository,
    ParentLost,
    RepositoryLocation,
    ResticContext,
    ResticFailed,
    Run,
    TargetFull,
)
from builderd.core.errors import BackupFailed, NoCapacity
from builderd.core.ids import BackupId, BuilderId, DiskId, TenantId, is_id
from builderd.engine.port import Tool, Tools

#: Snapshots in one ``forget`` command.
BATCH = 100
#: Packs that one command repairs: copies of them, of up to 128 MB, take its memory.
PACKS = 4


class ResticRepository:
    """``cache`` is for remote repositories; ``name`` is the host name in locks, unique to this service.

    If the repositories are local, ``floor_bytes`` of their file system stay free, and the repository of one tenant
    gets at most ``tenant_share`` of its own size plus the free space above the floor.
    """

    def __init__(
        self,
        tools: Callable[[], Tools],
        location: RepositoryLocation,
        cache: Path,
        name: str,
        floor_bytes: int = 0,
        tenant_share: float = 1,
    ) -> None:
        self._context = ResticContext(tools, location, cache, name)
        self._floor = floor_bytes
        self._tenant_share = tenant_share

    async def save(
        self, repository: TenantRepository, request: SaveRequest, on_progress: OnProgress
    ) -> SnapshotSummary:
        stored = await self._measure(request.disk, request.limit_bytes)
        await asyncio.to_thread(self._check_free_space, repository.tenant_id, stored)
        run = Run(self._context, repository, disk=request.disk, reads_all=True, on_progress=on_progress)
        # Tags of the snapshot, for a service whose database lost the backup.
        tags = f"{request.backup},version={request.version}"
        # The builder is the host, so its latest snapshot is the parent.
        argv = ("backup", "--host", request.builder, "--group-by", "host", "--tag", tags, runs.DISK)
        try:
            messages = await run(*argv, timeout=LONG, creates_repository=repository.is_new)
        except ParentLost:
            messages = await run(*argv, "--force", timeout=LONG)  # reads all files, without a parent
        summary = next((one for one in reversed(messages) if one.get("message_type") == "summary"), None)
        if summary is None:
            raise BackupFailed(f"restic reported no snapshot: {run.explain(messages)}.")
        return _summary(str(summary["snapshot_id"]), summary)

    async def restore(self, repository: TenantRepository, snapshot: str, disk: DiskId, on_progress: OnProgress) -> None:
        # It verifies files that the app itself may not read.
        run = Run(self._context, repository, disk=disk, writable=True, reads_all=True, on_progress=on_progress)
        try:
            # Long runs of zeros become holes again.
            argv = ("restore", f"{snapshot}:{runs.DISK}", "--target", runs.DISK, "--sparse", "--verify")
            await run(*argv, timeout=LONG)
        except TargetFull as error:
            if not error.store_full:
                raise NoCapacity(
                    "The backup's files do not fit on a disk of the builder's size, so nothing was replaced: deploy a "
                    f"version with a larger disk (resources.disk), then restore again. {error.message}."
                ) from error
            raise NoCapacity(
                "The machine's store for apps and layers is full: the backup was not restored, and nothing was "
                "replaced. Delete a builder that is not needed (stopping one frees nothing), or its operator frees "
                "space (builderd doctor) or enlarges the store (store.size). Then restore again.",
                retry_after=RETRY_FULL,
            ) from error
        except (ResticFailed, RepositoryDamaged) as error:
            # restic has one exit code for damage and for an unreachable repository; the latter fails this call too.
            await self.snapshots(repository)
            raise SnapshotDamaged(error.message) from error

    async def forget(self, repository: TenantRepository, snapshots: Sequence[str]) -> None:
        with _missing_only_if_new(repository):
            for start in range(0, len(snapshots), BATCH):
                await Run(self._context, repository)("forget", *snapshots[start : start + BATCH], timeout=LONG)

    async def prune(self, repository: TenantRepository) -> None:
        with _missing_only_if_new(repository):
            await Run(self._context, repository)("prune", "--max-unused", "10%", timeout=LONG)

    async def snapshots(self, repository: TenantRepository) -> Mapping[str, SnapshotRecord]:
        messages: Sequence[Mapping[str, Any]] = ()
        with _missing_only_if_new(repository):
            messages = await Run(self._context, repository)("snapshots", "--no-lock", timeout=QUICK)
        found = json.loads("".join(str(one.get("text", "")) for one in messages) or "[]")
        records = (_record(one) for one in found)
        return {one.summary.snapshot: one for one in records if one is not None}

    async def check(self, repository: TenantRepository, percent: float) -> Collection[str]:
        damage: list[Mapping[str, Any]] = []

        def note_damage(message: Mapping[str, Any]) -> None:
            if len(damage) < KEPT_LINES and runs.needs_repair(message):
                damage.append(message)

        run = Run(self._context, repository, on_message=note_damage)
        with _missing_only_if_new(repository):
            try:
                part = ("--read-data-subset", f"{percent:g}%") if percent else ()
                await run("check", *part, timeout=LONG)
            except (ResticFailed, RepositoryDamaged) as error:
                if damage:
                    raise RepositoryDamaged(f"The repository of backups is damaged: {run.explain(damage)}.") from error
                # Data is lost, or the repository is unreachable, which fails this as well.
                short = runs.IncompleteSnapshots()
                read = Run(self._context, repository, on_message=short.read)
                await read("repair", "snapshots", "--dry-run", timeout=LONG)
                return [one for one in await self.snapshots(repository) if one[:8] in short.found]
        return ()

    async def repair(self, repository: TenantRepository) -> None:
        run = Run(self._context, repository)
        with _missing_only_if_new(repository):
            damaged = await self._damaged_packs(repository)
            for start in range(0, len(damaged), PACKS):
                # restic moves readable data to new packs, and keeps damaged ones in its working directory.
                await run("repair", "packs", *damaged[start : start + PACKS], timeout=LONG)
            await run("repair", "index", timeout=LONG)

    async def _damaged_packs(self, repository: TenantRepository) -> Sequence[str]:
        """Read the whole repository; return its damaged packs."""
        summaries: list[Mapping[str, Any]] = []

        def note(message: Mapping[str, Any]) -> None:
            if message.get("message_type") == "summary":
                summaries.append(message)

        with suppress(ResticFailed, RepositoryDamaged):
            await Run(self._context, repository, on_message=note)("check", "--read-data-subset", "100%", timeout=LONG)
        if not summaries:
            raise BackupFailed("The repository of backups could not be read: restic reported no result.")
        return [str(pack) for pack in summaries[-1].get("broken_packs") or ()]

    async def _measure(self, disk: DiskId, limit_bytes: int) -> int:
        """Return about how many bytes restic keeps of the disk. Raises ``BackupFailed`` for too large files."""
        argv = ("/usr/bin/python3", "-I", "-S", "-c", _MEASURE_SOURCE, str(limit_bytes))
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        tool = Tool(argv, disk=disk, reads_all=True, timeout_seconds=LONG)
        ended = await self._context.tools().run_tool(tool, lines.append)
        answer = runs.parse(lines[-1]) if lines else {}
        if "too_much" in answer:
            raise BackupFailed(
                f"The files claim to have far more than the disk's size, the last of them {answer['too_much']!r}: "
                "remove large sparse files, or move them out of /app."
            )
        if "unreadable" in answer:
            raise BackupFailed(f"A file cannot be read: {answer['unreadable']}.")
        if ended.exit_code or "stored" not in answer:
            why = "out of memory" if ended.out_of_memory else "out of time" if ended.timed_out else " ".join(lines)
            raise BackupFailed(f"The files could not be measured: {why[-500:]}.")
        return int(answer["stored"])

    def _check_free_space(self, tenant: TenantId, needed: int) -> None:
        """Raise ``NoCapacity`` if the backup would fill the file system of the repositories, or the tenant's share."""
        if not self._context.location.is_local:
            return
        folder = Path(self._context.location.base)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free - needed < self._floor:
            raise NoCapacity(
                f"The file system of {folder} has {free / 1e9:.1f} GB free, and {self._floor / 1e9:.1f} GB stay free: "
                "too little for this backup. Its operator frees space there (df -h); removing backups of yours helps "
                "too (DELETE /api/v1/backups/{id}).",
                retry_after=RETRY_FULL,
            )
        own = sum(path.lstat().st_size for path in self._context.location.folder(tenant).rglob("*"))
        share = self._tenant_share * (own + free - self._floor)
        if own + needed > share:
            raise NoCapacity(
                f"Your backups take {own / 1e9:.1f} GB, this one may need {needed / 1e9:.1f} GB more, and a tenant may "
                f"have {share / 1e9:.1f} GB here: remove backups (DELETE /api/v1/backups/{{id}}) or files. The "
                "operator sets the share (backup.tenant_share)."
            )


@contextmanager
def _missing_only_if_new(repository: TenantRepository) -> Iterator[None]:
    """Ignore a missing repository only if it is new: an unmounted disk looks empty too."""
    try:
        yield
    except NoRepository:
        if not repository.is_new:
            raise


def _record(found: Mapping[str, Any]) -> SnapshotRecord | None:
    """Parse a snapshot; None if another program made it."""
    tags = [str(tag) for tag in found.get("tags") or ()]
    backup = next((tag for tag in tags if is_id(tag)), None)
    facts = dict(tag.split("=", 1) for tag in tags if "=" in tag)
    if backup is None or "version" not in facts:
        return None
    summary = _summary(str(found["id"]), found.get("summary") or {})
    at = datetime.fromisoformat(str(found["time"])).astimezone(UTC)
    return SnapshotRecord(BackupId(backup), BuilderId(str(found["hostname"])), at, int(facts["version"]), summary)


def _summary(snapshot: str, counted: Mapping[str, Any]) -> SnapshotSummary:
    """Parse the numbers that restic prints of a snapshot."""
    names = ("total_files_processed", "total_bytes_processed", "data_added_packed")
    return SnapshotSummary(snapshot, *(int(counted.get(name) or 0) for name in names))


#: The program that measures a disk, which runs in a sandbox.
_MEASURE_SOURCE = (Path(__file__).parent / "measure.py").read_text()
