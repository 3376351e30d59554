"""Layers: installed dependencies, made once a key, in sandboxes that reach the new layer and little else.

A build has a folder of its own: ``layer``, the subvolume that becomes the layer; ``input``, the plan's files; and
``cache``, an empty one for steps that may run foreign code. Each is a mount of its own in the sandbox, so
that nothing in one can be linked to from another.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from builderd.core.errors import BuilderdError, MachineFault, NotFound, helper_died
from builderd.core.ids import TenantId
from builderd.core.resources import GB
from builderd.dependencies.model import (
    APP,
    CACHE,
    INPUT,
    LAYER,
    NODE_MODULES,
    AppBuild,
    BuildOutcome,
    BuildStep,
    Cache,
    LayerPlan,
    StoredLayers,
)
from builderd.engine.oci.storage.app_builds import (
    FOLDER,
    UPPER,
    BuildRefused,
    FinishedBuild,
    has_own_packages,
    keep_result,
    layer_error,
    measure,
    place_files,
    take_upper,
)
from builderd.engine.oci.storage.backing import total_bytes
from builderd.engine.oci.storage.layer_store import LayerCache, LayerStore
from builderd.engine.oci.storage.quotas import FULL
from builderd.engine.oci.storage.store import (
    Store,
    full_store_named,
    layer_too_large,
    names_quota,
    store_full,
)
from builderd.engine.oci.storage.subvolumes import create_subvolume, snapshot
from builderd.engine.port import Progress, ToolExit
from builderd.linux.threads import run_to_completion

#: Owner of a layer's files: root on the disk, and root inside.
LAYER_UID = 0
MAX_LAYER, MIN_LAYER, MAX_CACHE = 10 * GB, GB // 4, 10 * GB
#: Share of a small store that the cache or a layer may take; a layer takes a share of the free space at most.
SHARE = 0.25

#: Exit status of a program that was ended by SIGKILL, as tini has it.
KILLED = 137
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Build:
    """Folder of a build, and the limit of each of its subvolumes in bytes.

    ``shared``: the shared cache, for builds with a step that writes to it. ``tenant``: who builds it, if it is known;
    ``tenant_limit``: the bytes that the tenant has left for it, of ``tenant_quota`` for all layers. ``app``: the
    version that is built, and ``below`` the layer with its dependencies, or the layer that the new one begins with.
    """

    folder: Path
    size: int
    shared: Path | None = None
    tenant: TenantId | None = None
    tenant_limit: int | None = None
    tenant_quota: int | None = None
    app: AppBuild | None = None
    below: Path | None = None

    @property
    def layer(self) -> Path:
        return self.folder / "layer"

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


class Layers:
    """Layers of a store. ``tools``: programs of the host that builds need, by their path inside."""

    def __init__(
        self,
        store: Store,
        runner: BuildRunner,
        tools: Mapping[str, Path],
        base_id: str = "",
    ) -> None:
        self.base_id = base_id
        self._store = store
        self._runner = runner
        self._tools = tuple(Bind(source, target, read_only=True, owner=None) for target, source in tools.items())
        self._finished = LayerStore(store)
        self._cache = LayerCache(store)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def open(self) -> None:
        """Remove half-made layers after a start, when no build runs."""
        for folder in self._store.builds.iterdir():
            self._discard(folder)
        self._finished.open()
        self._cache.open(min(MAX_CACHE, int(total_bytes(self._store.root) * SHARE)))

    def has(self, key: str) -> bool:
        """Return True when the layer exists, and record its use."""
        return self._finished.take(key) is not None

    async def has_layer(self, key: str) -> bool:
        return self.has(key)

    def lower(self, key: str) -> Path:
        """Return the folder to mount below a sandbox's root; it stays as long as the layer."""
        if (layer := self._finished.take(key)) is None:
            raise NotFound(f"There is no layer {key}.")
        return layer

    def finished_build(self, key: str) -> FinishedBuild:
        """Return the result of a build. Raises ``NotFound``."""
        return FinishedBuild(key, self.lower(key) / FOLDER)

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Make the layer, or wait for a running build of it. Raises ``NoCapacity`` when the store is too full."""
        async with self._locks.setdefault(plan.key, asyncio.Lock()):
            with full_store_named(self._store):
                return await self._build_once(plan, progress)

    async def _build_once(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        if self.has(plan.key):
            return BuildOutcome(0, (), 0.0, reused=True)
        if plan.app is not None:
            below = None if plan.app.dependencies is None else self.lower(plan.app.dependencies)
            async with self._new_layer(plan.key, 2, None, plan) as new:
                build = replace(new, app=plan.app, below=below)
                await run_to_completion(self._fill_app, build, plan.app)
                return await self._make(build, plan, progress)
        below, seconds = None, 0.0
        if plan.below is not None:
            first = replace(plan.below, tenant=plan.tenant, limit_bytes=plan.limit_bytes, quota_bytes=plan.quota_bytes)
            outcome = await self.build_layer(first, progress)
            if not outcome.ok:
                return outcome
            below, seconds = self.lower(plan.below.key), outcome.seconds
        caches = {step.cache for step in plan.steps}
        async with AsyncExitStack() as entered:
            shared = await entered.enter_async_context(self._cache.in_use()) if Cache.SHARED in caches else None
            # Foreign code gets an empty cache, and so does a build that finds the shared one full.
            has_own_cache = Cache.SCRATCH in caches or (Cache.SHARED in caches and shared is None)
            copies = 2 if has_own_cache else 1
            new = await entered.enter_async_context(self._new_layer(plan.key, copies, shared, plan))
            build = replace(new, below=below)
            await run_to_completion(self._fill, build, plan, has_own_cache)
            outcome = await self._make(build, plan, progress)
            return replace(outcome, seconds=outcome.seconds + seconds)

    def _fill_app(self, build: Build, app: AppBuild) -> None:
        create_subvolume(build.layer)
        self._limit(build, build.layer)
        try:
            place_files(build.layer, app, LAYER_UID)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            raise self._too_large(build) from error
        if build.below is not None:
            # The command may write in there; nothing of that is kept.
            snapshot(build.below, build.cache)
            self._limit(build, build.cache)

    def collect(self, keep: Collection[str], unused_seconds: float) -> list[str]:
        """Remove layers that are not in ``keep``, not mounted, and unused for so long; return their keys."""
        return self._finished.collect(keep, unused_seconds)

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> list[str]:
        return await run_to_completion(self._finished.collect, (), unused_seconds, keys)

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        return await run_to_completion(self._stored, keys)

    def _stored(self, wanted: Collection[str] | None) -> StoredLayers:
        keys = self._finished.keys() if wanted is None else wanted
        found = {key: layer for key in keys if (layer := self._finished.describe(key))}
        return StoredLayers(found, total_bytes(self._store.root))

    @asynccontextmanager
    async def _new_layer(
        self,
        key: str,
        copies: int,
        shared: Path | None,
        plan: LayerPlan,
    ) -> AsyncIterator[Build]:
        """Yield a build's folder, with a claim on its space; both are removed at the end."""
        name = f"{key[:16]}-{secrets.token_hex(4)}"
        claim = f"build {name}"
        size = self._store.reservations.claim_some(claim, MIN_LAYER * copies, self._most() * copies) // copies
        build = Build(
            self._store.builds / name,
            size if plan.limit_bytes is None else min(size, plan.limit_bytes),
            shared,
            plan.tenant,
            plan.limit_bytes,
            plan.quota_bytes,
        )
        try:
            await run_to_completion(build.folder.mkdir, mode=0o711)
            yield build
        finally:
            self._store.reservations.release(claim)
            await run_to_completion(self._discard, build.folder)

    def _discard(self, folder: Path) -> None:
        for name in ("layer", "cache"):
            self._store.quota.delete(folder / name)
        shutil.rmtree(folder, ignore_errors=True)

    def _most(self) -> int:
        return min(MAX_LAYER, int(total_bytes(self._store.root) * SHARE))

    def _fill(self, build: Build, plan: LayerPlan, has_own_cache: bool) -> None:
        for subvolume in (build.layer, build.cache) if has_own_cache else (build.layer,):
            if build.below is not None and subvolume == build.layer:
                snapshot(build.below, subvolume)
            else:
                create_subvolume(subvolume)
            self._limit(build, subvolume)
        for name in (UPPER, "work") if plan.changes_root else (UPPER,):
            (build.layer / name).mkdir(mode=0o755)
        build.input.mkdir(mode=0o755)
        for path, content in plan.inputs.items():
            file = build.input / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _limit(self, build: Build, subvolume: Path) -> None:
        """Limit one of the build's subvolumes, first its layer, and count its growth as the tenant's."""
        group = self._store.quota.limit(subvolume, build.size)
        if build.tenant:
            self._store.quota.count_growth(group, self._store.quota.group(build.layer), build.tenant)

    async def _make(self, build: Build, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        transcript = Transcript(progress)
        for step in plan.steps:
            progress(step.title)
            end = await self._runner.run_build(self._run(build, plan, step), transcript.add)
            if end.exit_code:
                await asyncio.to_thread(self._refuse_limit, build, end)
                if names_quota(transcript.last):
                    # Any program can print these words, and one may have removed what it had written.
                    transcript.add(f"note: if a limit ended it, then this: {self._too_large(build).message}")
                return transcript.outcome(end)
        if error := await run_to_completion(_take_result, build, plan):
            transcript.add(error)
            return transcript.outcome(BuildExit(1))
        size = await run_to_completion(measure, build.layer)
        if build.tenant_limit is not None and size > build.tenant_limit:
            raise self._too_large(replace(build, size=build.tenant_limit), size)
        await run_to_completion(self._finished.put, plan.key, build.layer, size, build.tenant)
        return transcript.outcome(BuildExit(0))

    def _refuse_limit(self, build: Build, end: BuildExit) -> None:
        """Raise ``MachineFault`` or ``NoCapacity`` for a failure that the installed packages did not cause.

        Raise ``InstallFailed`` where a limit ended the build: the installer cannot say which.
        """
        if end.out_of_memory or end.timed_out:
            return
        if end.exit_code == KILLED and build.app is None:
            raise helper_died("the installer", "was killed")
        quota, group = self._store.quota, self._store.quota.group(build.layer)
        if self._store.is_full() or self._store.growth_room(group, build.tenant or "") < min(FULL, quota.room(group)):
            raise store_full(self._store)
        if build.shared and quota.is_at_limit(build.shared):
            raise MachineFault("The machine's cache of downloads is full. Deploy again: it is emptied before.")
        if any(path.exists() and quota.is_at_limit(path) for path in (build.layer, build.cache)):
            raise self._too_large(build)

    def _too_large(self, build: Build, size: int | None = None) -> BuilderdError:
        return layer_too_large(
            build.size, self._most(), build.tenant_limit, build.tenant_quota, is_app=build.app is not None, size=size
        )

    def _run(self, build: Build, plan: LayerPlan, step: BuildStep) -> BuildRun:
        binds = self._app_binds(build, build.app) if build.app else (*self._binds(build, step.cache), *self._tools)
        return BuildRun(
            id=secrets.token_hex(8),
            argv=step.argv,
            env={**ENVIRONMENT, **step.env, **step.secrets},
            cwd=build.app.folder if build.app else INPUT,
            binds=() if plan.changes_root else tuple(binds),
            layer=build.below,
            scratch=build.layer if plan.changes_root else None,
            tenant=build.tenant or "" if build.app else "",
            network=step.network,
            timeout_seconds=step.timeout_seconds,
        )

    def _app_binds(self, build: Build, app: AppBuild) -> Iterator[Bind]:
        yield Bind(build.layer / FOLDER, APP, read_only=False, owner=LAYER_UID)
        packages = build.cache / NODE_MODULES
        if build.below is not None and packages.is_dir() and not has_own_packages(app):
            yield Bind(packages, f"{app.folder}/{NODE_MODULES}", read_only=False, owner=LAYER_UID)

    def _binds(self, build: Build, cache: Cache) -> Iterator[Bind]:
        yield Bind(build.input, INPUT, read_only=True, owner=LAYER_UID)
        yield Bind(build.layer / UPPER, LAYER, read_only=False, owner=LAYER_UID)
        source = {Cache.NONE: None, Cache.SHARED: build.shared or build.cache, Cache.SCRATCH: build.cache}[cache]
        if source is not None:
            yield Bind(source, CACHE, read_only=False, owner=LAYER_UID)


def _take_result(build: Build, plan: LayerPlan) -> str | None:
    """Make what the steps made the layer's content, or return why it cannot be kept. Blocks."""
    try:
        if build.app is not None:
            keep_result(build.layer, build.app.bundle)
        elif not plan.changes_root and (found := layer_error(build.layer / UPPER)):
            return found
        else:
            take_upper(build.layer)
    except BuildRefused as error:
        return f"error: {error}"
    return None


#: Called with each line that the build prints; must not block.
Output = Progress


@dataclass(frozen=True, slots=True)
class Bind:
    """Bind of the host's ``source`` at ``target``.

    ``owner`` is the uid on the disk that is root inside (with the 65535 above it); None binds it as it is.
    """

    source: Path
    target: str
    read_only: bool
    owner: int | None


@dataclass(frozen=True, slots=True)
class BuildRun:
    """Parameters of a build sandbox. ``id`` is unique on the host, in hex.

    The root is the base, read-only, with a ``/tmp`` in memory. The command runs as root of a user namespace
    without any capability. With ``scratch``, it may change the root, whose changes are in ``upper`` of that folder, and
    has capabilities over files. ``layer`` lies between the base and the command's own binds, read-only, ``tenant`` is
    whose NAT ports it takes. ``env`` is complete but for what the host's way to the network needs.
    """

    id: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    binds: tuple[Bind, ...]
    network: bool
    timeout_seconds: int
    layer: Path | None = None
    tenant: str = ""
    scratch: Path | None = None


#: Exit of a build, without ``store_full``.
BuildExit = ToolExit


class BuildRunner(Protocol):
    async def run_build(self, run: BuildRun, output: Output) -> BuildExit:
        """Run it to its end. When this returns, raises or is cancelled, no process of it is left."""


#: Last lines of a build kept to explain its failure; lines of progress passed on; characters of a line.
KEPT_LINES, TOLD_LINES, LINE_LENGTH = 500, 2_000, 1_000


class Transcript:
    """Output of a build: passed on as progress and kept for its error, both up to a limit."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._begun = time.monotonic()
        self._count = 0
        self.last: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, line: str) -> None:
        shown = line if len(line) <= LINE_LENGTH else line[:LINE_LENGTH] + "…"
        self.last.append(shown)
        self._count += 1
        if self._count <= TOLD_LINES:
            self._progress(shown)
        elif self._count == TOLD_LINES + 1:
            self._progress("… (what follows is left out here)")

    def outcome(self, end: BuildExit) -> BuildOutcome:
        return BuildOutcome(
            exit_code=end.exit_code,
            output=tuple(self.last),
            seconds=time.monotonic() - self._begun,
            out_of_memory=end.out_of_memory,
            timed_out=end.timed_out,
        )
