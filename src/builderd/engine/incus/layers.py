"""Layers: volumes of installed dependencies or of a build's files, attached read-only to many instances.

A layer is made as ``new-…`` and renamed when it is whole: ``layer-<key>``.
It lies on the member that made it, and is copied to another where an app first needs it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from weakref import WeakValueDictionary

from builderd.core.errors import BuilderdError, InstallFailed, NotFound
from builderd.core.ids import TenantId
from builderd.core.members import MemberAway
from builderd.core.resources import GB
from builderd.dependencies.model import (
    APP,
    CACHE,
    INPUT,
    LAYER,
    NODE_MODULES,
    BuildOutcome,
    BuildStep,
    Cache,
    LayerPlan,
    StoredLayer,
    StoredLayers,
)
from builderd.engine.incus.builds import ENVIRONMENT, Program, Runner
from builderd.engine.incus.client import NO_SPACE, IncusConflict, Json, names_full_pool, pool_full
from builderd.engine.incus.disks import FULL, HelperOf, described, send_files
from builderd.engine.incus.helper import PREFIX as HELPER
from builderd.engine.incus.instance import LAYER_BINDS, LAYER_PATH, Instance, Volume
from builderd.engine.incus.instances import Instances, Volumes, own_of, users_of
from builderd.engine.oci.storage.layers import Transcript
from builderd.engine.oci.storage.store import layer_too_large
from builderd.engine.port import Progress, ToolExit

MAX_LAYER, MAX_CACHE = 10 * GB, 10 * GB
NEW, _CACHE = "new-", "cache"
#: Where a version's build has its volume, hidden but for what is bound to ``/app``.
_BUILD = "/mnt/build"
#: Use of a layer is written down at most so often.
_USED_SECONDS = 3600.0
_NAME_LENGTH = 40


class Layers:
    """Implements ``ports.engine.Layers``. ``files`` returns the host's files for instances with a network.

    ``place`` chooses the member of a build; ``total_bytes`` returns the bytes of all pools together.
    """

    def __init__(
        self,
        volumes: Volumes,
        instances: Instances,
        runner: Runner,
        helper: HelperOf,
        place: Callable[[], Awaitable[str]],
        files: Callable[[], dict[str, bytes]],
        base_id: str = "",
        total_bytes: Callable[[], int] = int,
    ) -> None:
        self.base_id = base_id
        self._total_bytes = total_bytes
        self._volumes = volumes
        self._instances = instances
        self._runner = runner
        self._helper = helper
        self._place = place
        self._files = files
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: Last use by key, in seconds since 1970.
        self._used: dict[str, float] = {}
        #: Locked while the shared cache is written, and while a collection decides.
        self._cache_lock = asyncio.Lock()
        self._collecting = asyncio.Lock()

    async def has_layer(self, key: str) -> bool:
        return await self._find(key) is not None

    async def _find(self, key: str) -> Json | None:
        """Return the volume of the layer on any member, and record its use."""
        async with self._collecting:
            # One that only members have that are away is made again.
            with suppress(MemberAway):
                if found := await self._volumes.find(_name(key)):
                    self._used[key] = now = time.time()
                    if now - float(own_of(found).get("used", 0)) > _USED_SECONDS:
                        await self._volumes.change(_name(key), found.get("location") or "", {"used": str(int(now))})
                    return found
        return None

    async def volume(self, key: str, member: str) -> tuple[str, bool]:
        """Return the layer's volume on this member, copied there if need be; and True if it has Node packages."""
        found = await self._find(key)
        if found is None:
            raise NotFound(f"There is no layer {key}.")
        name, own = found["name"], own_of(found)
        if member and found.get("location") != member and await self._volumes.find(name, member) is None:
            with suppress(IncusConflict):
                await self._volumes.copy(name, name, MAX_LAYER, own, member, found["location"])
        return name, own.get("node") == "1"

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Make the layer, or wait for a running build of it. Raises ``InstallFailed`` for Debian packages."""
        if plan.below is not None or plan.changes_root:
            raise InstallFailed("The engine incus has no Debian packages: leave out packages, apt.txt and Aptfile.")
        async with self._locks.setdefault(plan.key, asyncio.Lock()):
            if await self.has_layer(plan.key):
                return BuildOutcome(0, (), 0.0, reused=True)
            member = await self._place()
            size = min(MAX_LAYER, plan.limit_bytes or MAX_LAYER)
            own = {"layer": plan.key, "tenant": plan.tenant or ""}
            new = _new_name()
            await self._volumes.create(new, size, own, member, mode="0755")
            try:
                return await self._build(plan, new, member, progress)
            finally:
                await asyncio.shield(self._discard(new, member))

    async def _discard(self, volume: str, member: str) -> None:
        await self._helper(member).detach(volume)
        await self._volumes.delete(volume, member)

    async def _build(self, plan: LayerPlan, new: str, member: str, progress: Progress) -> BuildOutcome:
        transcript, dependencies = Transcript(progress), ""
        if plan.app:
            if plan.app.dependencies:
                dependencies, _ = await self.volume(plan.app.dependencies, member)
            await self._fill(plan, new, member, dependencies)
        for step in plan.steps:
            progress(step.title)
            end = await self._run_step(plan, step, new, member, dependencies, transcript)
            if end.exit_code:
                await self._refuse_full(plan, new, member, transcript)
                return transcript.outcome(end)
        return await self._finish(plan, new, member, transcript)

    async def _fill(self, plan: LayerPlan, new: str, member: str, dependencies: str) -> None:
        assert plan.app
        files = plan.app.bundle.files
        request = {"volume": new, "files": described(files), "dependencies": dependencies, "root": plan.app.root}
        try:
            async with self._helper(member).task("fill_build", request, [new, *filter(None, [dependencies])]) as task:
                await send_files(task, files)
                await task.answer()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _over_limit(plan) from error

    async def _run_step(
        self, plan: LayerPlan, step: BuildStep, new: str, member: str, dependencies: str, transcript: Transcript
    ) -> ToolExit:
        async with self._cache(step.cache, member) as cache:
            instance = self._instance(plan, new, cache, dependencies)
            files = {f"{INPUT}/{path}": content for path, content in plan.inputs.items()}
            program = Program(
                step.argv,
                {**ENVIRONMENT, **step.env},
                plan.app.folder if plan.app else INPUT,
                step.timeout_seconds,
                files={**files, **self._files()},
            )
            return await self._runner.run(instance, program, member, transcript.add, network=step.network)

    def _instance(self, plan: LayerPlan, new: str, cache: str, dependencies: str) -> Instance:
        if plan.app:
            volumes = [Volume(new, _BUILD)]
            binds = [(f"{_BUILD}/app", APP), (f"{_BUILD}/packages", f"{plan.app.folder}/{NODE_MODULES}")]
            if dependencies:
                volumes.append(Volume(dependencies, LAYER_PATH, read_only=True))
                binds += LAYER_BINDS
        else:
            volumes, binds = [Volume(new, LAYER)], []
            if cache:
                volumes.append(Volume(cache, CACHE))
        return replace(
            self._instances.template(cpu=2, memory_bytes=2 * GB, processes=512, own_bytes=2 * GB),
            volumes=tuple(volumes),
            binds=tuple(binds),
            hidden=("/mnt", LAYER_PATH) if plan.app else (),
        )

    @asynccontextmanager
    async def _cache(self, kind: Cache, member: str) -> AsyncIterator[str]:
        """Yield the volume of downloads that a step sees: the shared one, or an empty one that is thrown away."""
        if kind is Cache.NONE:
            yield ""
        elif kind is Cache.SHARED:
            if await self._volumes.find(_CACHE, member) is None:
                with suppress(IncusConflict):
                    await self._volumes.create(_CACHE, MAX_CACHE, {}, member, mode="0755")
            async with self._cache_lock:
                yield _CACHE
        else:
            own = _new_name()
            await self._volumes.create(own, MAX_CACHE, {}, member, mode="0755")
            try:
                yield own
            finally:
                await asyncio.shield(self._volumes.delete(own, member))

    async def _finish(self, plan: LayerPlan, new: str, member: str, transcript: Transcript) -> BuildOutcome:
        files = plan.app.bundle.files if plan.app else ()
        request = {"volume": new, "app": plan.app is not None, "files": described(files)}
        async with self._helper(member).task("finish_build", request, [new]) as task:
            await send_files(task, files)
            answer = await task.answer()
        if answer["error_line"]:
            transcript.add(answer["error_line"])
            return transcript.outcome(ToolExit(1))
        if plan.limit_bytes is not None and answer["bytes"] > plan.limit_bytes:
            raise _over_limit(plan, answer["bytes"])
        own = {"bytes": str(answer["bytes"]), "node": answer["node"], "used": str(int(time.time()))}
        await self._helper(member).detach(new)
        await self._volumes.change(new, member, own)
        await self._volumes.rename(new, _name(plan.key), member)
        self._used[plan.key] = time.time()
        return transcript.outcome(ToolExit(0))

    async def _refuse_full(self, plan: LayerPlan, new: str, member: str, transcript: Transcript) -> None:
        """Raise ``InstallFailed`` where the tenant's limit ended the build, ``PoolFull`` where a full pool did.

        The installer cannot say the first.
        """
        if plan.limit_bytes and await self._volumes.used_bytes(new, member) > plan.limit_bytes * 0.95:
            raise _over_limit(plan)
        if any(map(names_full_pool, transcript.last)):
            raise pool_full(NO_SPACE, member)

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        """Return all layers, or those of these keys, which are asked for one by one."""
        if keys is None:
            found = [volume for volume in await self._volumes.all() if _is_layer(volume)]
        else:
            asked = await asyncio.gather(*(self._volumes.find(_name(key)) for key in keys))
            found = [volume for volume in asked if volume]
        layers = {
            own["layer"]: StoredLayer(int(own["bytes"]), TenantId(own["tenant"]) if own.get("tenant") else None)
            for own in map(own_of, found)
        }
        return StoredLayers(layers, self._total_bytes())

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> Sequence[str]:
        return await self.collect((), unused_seconds, only=keys)

    async def collect(
        self, keep: Collection[str], unused_seconds: float, only: Collection[str] | None = None
    ) -> list[str]:
        """Remove layers that are not in ``keep``, that no instance has, and that were not used for so long."""
        async with self._collecting:
            volumes: dict[str, list[Json]] = {}
            for volume in await self._volumes.all():
                if _is_layer(volume) and self._volumes.is_at_hand(volume):
                    volumes.setdefault(own_of(volume)["layer"], []).append(volume)
            gone = [
                key
                for key, found in volumes.items()
                if key not in keep and (only is None or key in only) and self._is_unused(key, found, unused_seconds)
            ]
            for volume in (volume for key in gone for volume in volumes[key]):
                await self._discard(volume["name"], volume.get("location") or "")
            return gone

    def _is_unused(self, key: str, found: Sequence[Json], unused_seconds: float) -> bool:
        used = max(self._used.get(key, 0), *(float(own_of(volume).get("used", 0)) for volume in found))
        if time.time() - used < unused_seconds:
            return False
        return not any(not user.startswith(HELPER) for volume in found for user in users_of(volume))


def _new_name() -> str:
    return f"{NEW}{secrets.token_hex(8)}"


def _name(key: str) -> str:
    return f"layer-{key[:_NAME_LENGTH]}"


def _is_layer(volume: Json) -> bool:
    return str(volume["name"]).startswith("layer-")


def _over_limit(plan: LayerPlan, size: int | None = None) -> BuilderdError:
    room, limit, is_app = plan.limit_bytes or MAX_LAYER, plan.limit_bytes, plan.app is not None
    return layer_too_large(room, MAX_LAYER, limit, plan.quota_bytes, is_app=is_app, size=size)
