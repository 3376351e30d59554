"""Tools: trusted programs of the host, such as restic, that work on a disk in a sandbox of their own.

A disk is full of hostile names and links. So a tool gets the same confinement as a build: a user namespace in which
only the disk's owner means anything, system calls filtered, limits, a read-only root, and no network unless it needs
one. Its record has no owner, as that of a build: a service that starts ends what an earlier one left.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from builderd.adapters.engines.oci.network.host_files import CA_BUNDLE
from builderd.adapters.engines.oci.runtime.apps import INIT
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.runtime.run import Run
from builderd.adapters.engines.oci.runtime.runner import Runner
from builderd.adapters.engines.oci.storage.base_recipe import APP_UID
from builderd.adapters.engines.oci.storage.builds import Bind, Output
from builderd.adapters.engines.oci.storage.disks import APP_OWNER, DISK_UID, Disks
from builderd.domain.errors import EngineUnavailable
from builderd.domain.resources import GB
from builderd.ports.engine import TOOL_FOLDERS, Tool, ToolExit

#: Programs of the host that may run as tools; they need no more of the base than its C library.
PROGRAMS = ("restic",)
_PATH = "/usr/local/bin:/usr/bin:/bin"
_FOLDER = "/usr/local/bin"
_CPU, _MEMORY, _PROCESSES = 2, 2 * GB, 256
_LOG_LIMIT = 10_000_000
_READ_ALL = ("CAP_DAC_READ_SEARCH",)


class Tools:
    """Implements ``ports.engine.Tools``. ``mount_points`` is the topmost layer of a tool's root, which is read-only.

    ``refuse_while_used`` raises ``InvalidState`` for a disk that a sandbox runs on.
    """

    def __init__(
        self,
        runner: Runner,
        runtime: Runtime,
        lowers: tuple[Path, ...],
        mount_points: Path,
        disks: Disks,
        refuse_while_used: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._runtime = runtime
        self._lowers = (mount_points, *lowers)
        self._mount_points = mount_points
        self._disks = disks
        self._refuse_while_used = refuse_while_used

    def open(self) -> None:
        """Make the mount points. Idempotent."""
        for folder in ("disk", *TOOL_FOLDERS, _FOLDER.lstrip("/")):
            (self._mount_points / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        for program in PROGRAMS:
            (self._mount_points / _FOLDER.lstrip("/") / program).touch(mode=0o644)

    async def run_tool(self, tool: Tool, output: Output) -> ToolExit:
        if tool.disk is not None and tool.writable:
            self._refuse_while_used(tool.disk)
        for folder in tool.folders.values():
            make_folder(folder)
        run = self._make_run(secrets.token_hex(8), tool)
        ended = await self._runner.run(run, tool.timeout_seconds, output)
        store_full = bool(ended.exit_code) and tool.disk is not None and self._disks.is_stopped_by_store(tool.disk)
        return ToolExit(ended.exit_code, ended.out_of_memory, ended.timed_out, store_full)

    def _make_run(self, name: str, tool: Tool) -> Run:
        return Run(
            id=name,
            owner="",
            disk="",
            runtime=self._runtime,
            root=Root(self._lowers, (*_programs(tool), *self._binds(tool))),
            hostname=tool.hostname,
            port=0,
            argv=[*INIT, *tool.argv],
            env={"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "SSL_CERT_FILE": str(CA_BUNDLE), **tool.env},  # noqa: S108
            cwd="/tmp",  # noqa: S108
            user=APP_UID,
            cpu=_CPU,
            memory_bytes=_MEMORY,
            pids=_PROCESSES,
            egress=False,
            log=self._runner.log_of(name),
            log_limit=_LOG_LIMIT,
            tmpfs={"/tmp": _MEMORY // 2},  # noqa: S108
            capabilities=_READ_ALL if tool.reads_all else (),
            host_network=tool.network,
        )

    def _binds(self, tool: Tool) -> Iterator[Bind]:
        if tool.disk is not None:
            yield Bind(self._disks.app(tool.disk), "/disk", not tool.writable, DISK_UID)
        for name, folder in tool.folders.items():
            yield Bind(folder, f"/{name}", read_only=False, owner=DISK_UID)


def _programs(tool: Tool) -> Iterator[Bind]:
    for program in PROGRAMS:
        if program in tool.argv:
            path = shutil.which(program, path=_PATH)
            if path is None:
                raise EngineUnavailable(f"{program} is not installed on this machine: apt-get install {program}.")
            yield Bind(Path(path).resolve(), f"{_FOLDER}/{program}", read_only=True, owner=None)


def make_folder(folder: Path) -> None:
    """Create a folder that tools own; its parent keeps other users out."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != APP_OWNER:
        os.chown(folder, APP_OWNER, APP_OWNER)
