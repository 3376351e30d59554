"""Disks: volumes whose folder ``app`` is an app's ``/app``. What lies beside it is the service's.

The bundle that was last written completely is a key of the volume, emptied before the files change and set after them:
``bundle``; ``replaced`` is the one before it while it is not. ``build`` is the layer whose files were written too.

What is to be deleted or ended on a member that is away is noted in the configuration of the service's project
(``user.builderd.<kind>.<id>``, its member), which the database of the cluster keeps over restarts of this service.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from builderd.code.model import Bundle, BundleFile, changes
from builderd.core.errors import BuilderdError, EngineUnavailable, NoCapacity, NotFound, TooLarge
from builderd.core.ids import DiskId
from builderd.core.members import MemberAway
from builderd.core.resources import GB
from builderd.engine.incus.client import IncusClient, IncusConflict, IncusNotFound, Json
from builderd.engine.incus.cluster import FEATURES
from builderd.engine.incus.helper import Helper, Task
from builderd.engine.incus.instance import OWN
from builderd.engine.incus.instances import Instances, Volumes, own_of, users_of
from builderd.engine.incus.network import Routes
from builderd.engine.port import DiskReport
from builderd.files.model import Condition, FileEntry, FileKind, FilePage

#: errno of a disk that has reached its limit: EFBIG, EDQUOT. ENOSPC is a full pool's, and ``PoolFull``.
FULL = (27, 122)

_PREFIX = "disk-"
#: Key of a copy that takes the place of its original on another member (``move``): that member.
MOVED_FROM = "moved_from"

#: After a disk could not be moved: its app starts where it was, and is not interrupted again for so long.
RETRY_SECONDS = 300.0
_PIECE_BYTES = 1 << 18

HelperOf = Callable[[str], Helper]

log = logging.getLogger(__name__)


def volume_of(disk: DiskId) -> str:
    return f"{_PREFIX}{disk}"


class Disks:
    """``place`` chooses the member of a new or moved disk; ``helper`` returns the helper of a member.

    ``leaving`` returns the members that are to be emptied.
    """

    def __init__(
        self,
        volumes: Volumes,
        helper: HelperOf,
        place: Callable[[], Awaitable[str]],
        leaving: Callable[[], Collection[str]],
    ) -> None:
        self._volumes = volumes
        self._helper = helper
        self._place = place
        self._leaving = leaving
        #: One lock a disk: nothing starts on a disk that is moved or deleted.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._moving: set[DiskId] = set()
        #: When a disk that could not be moved is tried again, by the monotonic clock.
        self._retry_at: dict[DiskId, float] = {}
        #: Disks that are reported as gone while their member is away.
        self.written_off: set[DiskId] = set()

    def lock(self, disk: DiskId) -> asyncio.Lock:
        return self._locks.setdefault(disk, asyncio.Lock())

    async def create(self, disk: DiskId, size_bytes: int) -> None:
        found, sized = await self._volumes.find(volume_of(disk)), {"size": str(size_bytes)}
        if found is None:
            with suppress(IncusConflict):
                await self._volumes.create(volume_of(disk), size_bytes, sized, await self._place())
                return
        member = "" if found is None else found["location"]
        await self._volumes.change(volume_of(disk), member, sized, size_bytes)

    async def report(self, disk: DiskId) -> DiskReport | None:
        try:
            found = await self.find(disk)
        except MemberAway:
            if disk in self.written_off:
                return None
            raise
        # It is at hand again: should its member be away once more, that is a new loss.
        self.written_off.discard(disk)
        if found is None:
            return None
        own = own_of(found)
        return DiskReport(
            disk,
            own.get("bundle") or None,
            int(own.get("size", 0)),
            own.get("build", ""),
            is_leaving=self.is_leaving(disk, str(found.get("location") or "")),
        )

    async def has_written_off(self, instance: str) -> bool:
        """Return True if the instance has a disk that is written off."""
        if not self.written_off:
            return False
        gone = {volume_of(disk) for disk in self.written_off}
        return any(volume["name"] in gone and instance in users_of(volume) for volume in await self._volumes.all())

    async def members(self) -> Mapping[DiskId, str]:
        """Return the member of each disk of a cluster."""
        found = await self._volumes.placed()
        return {DiskId(name.removeprefix(_PREFIX)): member for name, member in found if name.startswith(_PREFIX)}

    async def member(self, disk: DiskId) -> str:
        """Return the member that the disk lies on; "" without a cluster. Raises ``NotFound``."""
        return str((await self.existing(disk)).get("location") or "")

    async def limit(self, disk: DiskId) -> int:
        return int(own_of(await self.existing(disk))["size"])

    async def find(self, disk: DiskId) -> Json | None:
        """Return the volume of the disk; of one that is being moved, its original. Raises ``MemberAway``."""
        found = await self._volumes.find(volume_of(disk))
        if found and (member := own_of(found).get(MOVED_FROM)):
            return await self._volumes.find(volume_of(disk), member) or found
        return found

    async def existing(self, disk: DiskId) -> Json:
        """Return the volume of the disk. Raises ``NotFound``, ``MemberAway``."""
        found = await self.find(disk)
        if found is None:
            raise NotFound(f"There is no disk {disk}.")
        return found

    async def put_bundle(
        self, found: Json, bundle: Bundle, replaced: Bundle | None, build_key: str, build_volume: str
    ) -> None:
        """Write the version to a disk's volume, with the files of the build in ``build_volume`` ("" without one)."""
        own, member, volume = own_of(found), str(found.get("location") or ""), str(found["name"])
        recorded = {own.get("bundle"), own.get("replaced")} - {None, ""}
        before = replaced if replaced and replaced.hash in recorded else Bundle("", ())
        written, removed = changes(before, bundle)
        # Files that an earlier build had changed are the version's again: all must be at hand then.
        sent = bundle.files if own.get("build") or own.get("building") else written
        await self._volumes.change(
            *(volume, member),
            {"bundle": "", "replaced": before.hash, "building": build_key or own.get("build", "")},
        )
        request = {
            "volume": volume,
            "files": described(sent),
            "written": [file.path for file in written],
            "removed": list(removed),
            "build": build_volume,
            "build_key": build_key,
        }
        try:
            async with self._helper(member).task(
                "put_bundle", request, [volume, *filter(None, [build_volume])]
            ) as task:
                await send_files(task, sent)
                await task.answer()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise NoCapacity(
                f"The builder's disk of {int(own['size']) / GB:.3g} GB is full: delete files in /app or ~/.cache, or "
                "ask for a larger disk."
            ) from error
        await self._volumes.change(
            volume, member, {"bundle": bundle.hash, "replaced": "", "build": build_key, "building": ""}
        )

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        found = await self.existing(disk)
        volume, member = volume_of(disk), str(found.get("location") or "")
        await self._helper(member).run("take_home_out", {"volume": volume}, [volume])
        await self._volumes.change(volume, member, {"bundle": bundle_hash})

    async def clone(self, source: DiskId, target: DiskId, size_bytes: int) -> None:
        """Make a copy on the same member; one that exists stays."""
        found = await self.existing(source)
        own, member = {**own_of(found), "size": str(size_bytes)}, str(found.get("location") or "")
        with suppress(IncusConflict):
            try:
                await self._volumes.copy(volume_of(source), volume_of(target), size_bytes, own, member)
            except IncusNotFound:
                raise NotFound(f"There is no disk {source}.") from None

    async def put_home_in(self, disk: DiskId) -> None:
        """Move the user's home of a copy among its files, for a backup."""
        volume = volume_of(disk)
        await self._helper(await self.member(disk)).run("put_home_in", {"volume": volume}, [volume])

    async def delete(self, disk: DiskId, found: Json) -> None:
        """Delete a disk that no sandbox has, as it was found. Idempotent."""
        member = str(found.get("location") or "")
        await self._helper(member).detach(volume_of(disk))
        await self._volumes.delete(volume_of(disk), member)

    # Moves

    def is_leaving(self, disk: DiskId, member: str) -> bool:
        """Return True if the disk is to leave its member before an app starts on it."""
        return member in self._leaving() and time.monotonic() >= self._retry_at.get(disk, 0.0)

    def is_moving(self, disk: DiskId) -> bool:
        return disk in self._moving

    async def move(self, disk: DiskId, found: Json) -> str:
        """Move a disk, as it was found, that no sandbox uses. Return its member: the same one where that failed."""
        member = str(found.get("location") or "")
        self._moving.add(disk)
        try:
            return await self._carry_out(disk, found, member)
        except Exception as error:
            log.warning(
                "disk not moved, retrying later disk=%s member=%s error=%s",
                *(disk, member, error),
                exc_info=not isinstance(error, BuilderdError),
            )
            self._retry_at[disk] = time.monotonic() + RETRY_SECONDS
            return member
        finally:
            self._moving.discard(disk)

    async def _carry_out(self, disk: DiskId, found: Json, member: str) -> str:
        name, own = volume_of(disk), own_of(found)
        if self._helper(member).is_using(name):
            raise EngineUnavailable("One of its files is being read or written.")
        for place in await self._volumes.places(name):
            if place != member:  # a copy of a move that failed
                await self._volumes.delete(name, place)
        target = await self._place()
        try:
            await self._volumes.copy(name, name, int(own["size"]), own | {MOVED_FROM: member}, target, member)
        except BaseException:
            await asyncio.shield(self._volumes.delete(name, target))
            raise
        await self.delete(disk, found)
        await self._volumes.change(name, target, {MOVED_FROM: ""})
        log.info("disk moved disk=%s member=%s target=%s", disk, member, target)
        return target


def described(files: tuple[BundleFile, ...]) -> list[tuple[str, int, bool]]:
    """Return path, size and executable bit of each file, for the helper's program."""
    return [(file.path, file.size, file.executable) for file in files]


async def send_files(task: Task, files: tuple[BundleFile, ...]) -> None:
    """Send the contents of the files, one after the other."""
    for file in files:
        for chunk in file.chunks():
            if chunk:
                await task.send(chunk)
    await task.send_end()


class Files:
    """Files on disks, through the helper of the disk's member. Implements ``ports.files.DiskFiles``."""

    def __init__(self, disks: Disks, helper: HelperOf) -> None:
        self._disks = disks
        self._helper = helper

    async def list_files(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        request = {"path": path, "skip": skip, "count": count}
        async with self._task("list_files", disk, request) as task:
            answer = await task.answer()
        return FilePage([_entry(entry) for entry in answer["entries"]], answer["total"])

    @asynccontextmanager
    async def open_file(self, disk: DiskId, path: str) -> AsyncIterator[OpenDiskFile]:
        async with self._task("open_file", disk, {"path": path}) as task:
            answer = await task.answer()
            yield OpenDiskFile(_entry(answer["entry"]), task)

    async def write_file(
        self,
        disk: DiskId,
        path: str,
        content: AsyncIterator[bytes],
        *,
        condition: Condition,
        size: int | None = None,
        executable: bool | None = None,
    ) -> tuple[FileEntry, bool]:
        limit = await self._disks.limit(disk)
        request = {"path": path, "size": size, "executable": executable, "limit": limit, **_condition(condition)}
        async with self._changing(disk), self._task("write_file", disk, request, changes=True) as task:
            await task.answer()
            async for piece in content:
                for start in range(0, len(piece), _PIECE_BYTES):
                    await task.send(piece[start : start + _PIECE_BYTES])
            await task.send_end()
            answer = await task.answer()
        return _entry(answer["entry"]), answer["new"]

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        request = {"path": path, "recursive": recursive, **_condition(condition)}
        async with self._changing(disk), self._task("delete_file", disk, request, changes=True) as task:
            await task.answer()

    @asynccontextmanager
    async def _changing(self, disk: DiskId) -> AsyncIterator[None]:
        """Name a disk that is full."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise TooLarge(
                f"The file does not fit on the builder's disk of {await self._disks.limit(disk) / GB:.3g} GB: delete "
                "files in /app, or ask for a larger disk."
            ) from error

    async def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        async with self._task("archive", disk, {}) as task:
            await task.answer()
            async for piece in task.frames():
                yield piece

    @asynccontextmanager
    async def _task(self, name: str, disk: DiskId, request: Json, *, changes: bool = False) -> AsyncIterator[Task]:
        volume = volume_of(disk)
        helper = self._helper(await self._disks.member(disk))
        async with helper.task(name, {"volume": volume, **request}, [volume]) as task:
            # Now that the helper uses the volume, no move begins.
            if changes and self._disks.is_moving(disk):
                raise EngineUnavailable(
                    "The builder is being moved to another member of the cluster: try again.", retry_after=5
                )
            yield task


class OpenDiskFile:
    """Implements ``ports.files.OpenFile``."""

    def __init__(self, entry: FileEntry, task: Task) -> None:
        self.entry = entry
        self._task = task

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        await self._task.session.write(f"{start} {length}\n".encode())
        async for piece in self._task.frames():
            yield piece


def _entry(answer: Json) -> FileEntry:
    at = datetime.fromtimestamp(answer["modified_at"], UTC)
    return FileEntry(**{**answer, "kind": FileKind(answer["kind"]), "modified_at": at})


def _condition(condition: Condition) -> Json:
    return {
        name: None if tags is None else sorted(tags)
        for name, tags in (("matches", condition.matches), ("differs", condition.differs))
    }


_DELETE, _END = f"{OWN}delete.", f"{OWN}end."


class LostParts:
    """Work on members that are away, done once they return. One that was cut off runs its sandboxes until then."""

    def __init__(self, client: IncusClient, volumes: Volumes, instances: Instances, routes: Routes) -> None:
        self._client = client
        self._volumes = volumes
        self._instances = instances
        self._routes = routes
        self._path = f"/projects/{client.project}"
        #: Instances of sandboxes that are to end.
        self._ending: set[str] = set()

    async def load(self) -> None:
        """Read what an earlier service noted."""
        self._ending = set(await self._notes(_END))

    def has(self, instance: str) -> bool:
        """Return True for an instance that is to be ended when its member returns."""
        return instance in self._ending

    async def end_later(self, found: Json) -> None:
        """Have the instance ended when its member returns. Idempotent."""
        name, member = found["name"], str(found.get("location"))
        if name not in self._ending:
            log.warning("app is ended when its member returns instance=%s member=%s", name, member)
            await self._change({f"{_END}{name}": member})
            self._ending.add(name)

    async def delete_later(self, disk: DiskId, away: Collection[str]) -> bool:
        """Have a disk deleted when its member returns; False where it lies on a member that answers, or nowhere."""
        places = await self._volumes.places(volume_of(disk)) if away else []
        if not places or not set(away).issuperset(places):
            return False
        log.warning("disk is deleted when its member returns disk=%s member=%s", disk, places[0])
        await self._change({f"{_DELETE}{disk}": places[0]})
        return True

    async def finish_on(self, members: Collection[str]) -> None:
        """Delete and end what is noted of these members, which answer again. With a disk goes the app that has it."""
        for disk, member in (await self._notes(_DELETE)).items():
            if member in members:
                await self._delete(DiskId(disk), member)
                await self._change({}, f"{_DELETE}{disk}")
        for name, member in (await self._notes(_END)).items():
            if member in members:
                await self.end(name)

    async def end(self, name: str) -> None:
        """End an instance, whose log stays. Idempotent."""
        if await self._instances.find(name) is not None:
            await self._instances.mark(name, {"stopping": f"{time.time():.6f}"})
            await self._instances.kill(name)
        await self._change({}, f"{_END}{name}")
        self._ending.discard(name)

    async def _delete(self, disk: DiskId, member: str) -> None:
        found = await self._volumes.find(volume_of(disk), member)
        if found is None:
            return
        log.warning("deleting disk that was replaced while its member was away disk=%s member=%s", disk, member)
        for name in users_of(found):
            if user := await self._instances.find(name):
                await self._routes.remove(own_of(user).get("ip", ""))
                await self._instances.delete(name)
        await self._volumes.delete(volume_of(disk), member)

    async def _notes(self, prefix: str) -> Mapping[str, str]:
        """Return the member of each noted id."""
        config = (await self._client.get(self._path, project="default"))["config"]
        return {key.removeprefix(prefix): member for key, member in config.items() if key.startswith(prefix)}

    async def _change(self, added: Mapping[str, str], removed: str = "") -> None:
        async with self._client.changing_project:
            project = await self._client.get(self._path, project="default")
            left = {key: value for key, value in project["config"].items() if key != removed}
            # PUT: with a PATCH, Incus takes features that it leaves out as wanted.
            body = {"description": project["description"], "config": {**FEATURES, **left, **added}}
            await self._client.call("PUT", self._path, body, project="default")
