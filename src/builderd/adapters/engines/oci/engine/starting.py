"""Start of an app's sandbox on this machine."""

from __future__ import annotations

from dataclasses import replace

from builderd.adapters.engines.oci.engine.machine import Machine
from builderd.adapters.engines.oci.runtime.apps import app_root, brings_packages, make_run
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.storage.disk_space import DiskSpace
from builderd.domain.layers import NODE_MODULES
from builderd.domain.sandboxes import SandboxSpec
from builderd.linux.threads import run_to_completion
from builderd.ports.engine import EngineOptions


class Starting:
    """Starts sandboxes on an open machine."""

    def __init__(self, machine: Machine, options: EngineOptions) -> None:
        self._machine = machine
        self._options = options

    async def start(self, spec: SandboxSpec, runtime: Runtime) -> Record:
        """Start it. Raises ``EngineUnavailable`` on failure and leaves nothing."""
        if left := self._machine.runs.find(spec.id):
            await self._machine.runs.remove(left)
        root, space = await run_to_completion(self._make_root, spec)
        log_file = self._machine.logs.begin(spec.builder_id, spec.id)
        url = f"http://{self._machine.addresses.gateway}:{self._options.inside_port}"
        run = make_run(spec, runtime, root, log_file, self._options.log_limit, url)
        return await self._machine.runs.start(replace(run, space=space))

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
