"""Start of an app's sandbox on this machine: in a prepared one if it was reserved, else in a new one."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from builderd.adapters.engines.oci.engine.machine import Machine
from builderd.adapters.engines.oci.runtime.apps import app_root, brings_packages, make_prepared, make_run
from builderd.adapters.engines.oci.runtime.claims import Claims
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.pool import Pool
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.storage.disk_space import DiskSpace
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId, new_sandbox_id
from builderd.domain.layers import NODE_MODULES
from builderd.domain.sandboxes import SandboxSpec
from builderd.domain.versions import Isolation
from builderd.linux.threads import run_to_completion
from builderd.ports.engine import EngineOptions

log = logging.getLogger(__name__)


class Starting:
    """Starts sandboxes on an open machine, and keeps the pool of prepared ones. Needs a running event loop."""

    def __init__(self, machine: Machine, options: EngineOptions) -> None:
        self._machine = machine
        self._options = options
        self._claims = Claims(machine.context, machine.runs)
        # Only crun lets a created sandbox start without a command of its own.
        size = options.sandbox_pool if machine.runtimes["standard"].name == "crun" else 0
        self._pool = Pool(size, self._prepare, self._drop)
        self._pool.open()

    async def close(self) -> None:
        """Remove prepared sandboxes that nothing claimed."""
        await self._pool.close()

    def reserve(self, isolation: Isolation, layer_key: str | None) -> SandboxId | None:
        """Return the id of a prepared sandbox, None when none fits: they have the base alone, and no gVisor."""
        fits = isolation is Isolation.STANDARD and layer_key is None
        return self._pool.reserve() if fits else None

    async def discard(self, sandbox: SandboxId) -> None:
        """Remove a reserved sandbox. Idempotent."""
        await self._pool.discard(sandbox)

    async def start(self, spec: SandboxSpec, runtime: Runtime) -> Record:
        """Start it. Raises ``EngineUnavailable`` on failure and leaves nothing."""
        prepared = self._pool.take(spec.id)
        if prepared is not None and (claimed := await self._claimed(spec, runtime, prepared)) is not None:
            return claimed
        await self._pool.forget(spec.id)
        if left := self._machine.runs.find(spec.id):
            await self._machine.runs.remove(left)
        root, space = await run_to_completion(self._make_root, spec)
        log_file = self._machine.logs.begin(spec.builder_id, spec.id)
        run = make_run(spec, runtime, root, log_file, *self._for_all)
        return await self._machine.runs.start(replace(run, space=space))

    @property
    def _for_all(self) -> tuple[int, str]:
        """Return the size of a log and the service's URL inside."""
        options = self._options
        return options.log_limit, f"http://{self._machine.addresses.gateway}:{options.inside_port}"

    def _make_root(self, spec: SandboxSpec) -> tuple[Root, DiskSpace]:
        """Make the root's folders; return it with the space of the disk. Blocks while the store syncs or collects."""
        here = self._machine
        layer = None if spec.layer_key is None else here.layers.lower(spec.layer_key)
        scratch = here.disks.scratch(spec.disk)
        has_packages = layer is not None and (layer / NODE_MODULES).is_dir() and not brings_packages(spec.entrypoint)
        place = f"{spec.root}/{NODE_MODULES}" if spec.root else NODE_MODULES
        mirrored = has_packages and here.disks.make_mount_point(spec.disk, place)
        app, home = here.disks.app(spec.disk), here.disks.home(spec.disk)
        lacks = layer is not None and here.lacks_bytecode(layer)
        packages = place if mirrored else None
        root = app_root(here.lowers(layer), scratch, app, home, packages=packages, lacks_bytecode=lacks)
        return root, here.disks.space(spec.disk)

    async def _claimed(self, spec: SandboxSpec, runtime: Runtime, prepared: Record) -> Record | None:
        """Start it in the prepared sandbox; None if that cannot be. Whatever fails, no unclaimed sandbox is left."""
        try:
            if _suits(prepared, spec, runtime):
                return await self._claim(spec, runtime, prepared)
        except (EngineUnavailable, OSError) as error:
            log.warning("prepared sandbox not used, starting a new one sandbox=%s error=%s", spec.id, error)
        except BaseException:
            await asyncio.shield(self._pool.remove(prepared))
            raise
        await self._pool.remove(prepared)
        return None

    async def _claim(self, spec: SandboxSpec, runtime: Runtime, prepared: Record) -> Record:
        root, space = await run_to_completion(self._adopt_root, spec)
        log_file = self._machine.logs.adopt(spec.builder_id, self._log_of(spec.id))
        run = make_run(spec, runtime, root, log_file, *self._for_all)
        return await self._claims.claim(replace(run, space=space), prepared)

    def _adopt_root(self, spec: SandboxSpec) -> tuple[Root, DiskSpace]:
        disks = self._machine.disks
        scratch = disks.adopt_scratch(spec.id, spec.disk)
        root = app_root(self._machine.lowers(), scratch, disks.app(spec.disk), disks.home(spec.disk))
        return root, disks.space(spec.disk)

    async def _prepare(self) -> Record:
        here, name = self._machine, new_sandbox_id()
        scratch = await run_to_completion(here.disks.prepare_scratch, name)
        root = Root(lowers=here.lowers(), scratch=scratch)
        run = make_prepared(name, here.runtimes["standard"], root, self._log_of(name), self._options.log_limit)
        try:
            return await self._claims.prepare(run)
        except BaseException:
            await run_to_completion(here.disks.drop_scratch, name)
            raise

    async def _drop(self, prepared: Record) -> None:
        await self._machine.runs.remove(self._machine.runs.find(prepared.id) or prepared)
        await run_to_completion(self._machine.disks.drop_scratch, prepared.id)

    def _log_of(self, name: str) -> Path:
        return self._machine.runs.records.folder(name) / "log" / f"{name}.log"


def _suits(prepared: Record, spec: SandboxSpec, runtime: Runtime) -> bool:
    """Return True if the start asks for nothing that a prepared sandbox lacks or has beyond it."""
    return spec.layer_key is None and spec.egress and runtime.name == prepared.runtime
