"""Tools: trusted programs such as restic, in an instance of their own on the member with the disk."""

from __future__ import annotations

import os
from pathlib import Path

from builderd.adapters.engines.incus.builds import Program, Runner
from builderd.adapters.engines.incus.disks import Disks, volume_of
from builderd.adapters.engines.incus.instance import HELD, Instance, Volume
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.members import Members
from builderd.adapters.engines.oci.network.host_files import CA_BUNDLE
from builderd.adapters.engines.oci.storage.base_recipe import APP_UID
from builderd.domain.errors import EngineUnavailable
from builderd.domain.resources import GB
from builderd.ports.engine import Progress, Tool, ToolExit

_CPU, _MEMORY, _PROCESSES = 2, 2 * GB, 256
_ROOT_BYTES = 2 * GB
#: Folder whose content makes a tool faster and may be missing: it goes to no other member.
_CACHE = "cache"


class Tools:
    """Elsewhere than on the service's own member, tools get copies of folders of its machine."""

    def __init__(
        self, runner: Runner, instances: Instances, disks: Disks, members: Members, files: dict[str, bytes]
    ) -> None:
        self._runner = runner
        self._instances = instances
        self._disks = disks
        self._members = members
        self._files = files

    async def run(self, tool: Tool, output: Progress) -> ToolExit:
        """Run the tool. Raises ``NotFound`` without the disk."""
        own = self._members.own
        member = await self._disks.member(tool.disk) if tool.disk else self._members.taking_work()
        is_here = member == own
        if "repository" in tool.folders and not is_here:
            which = f"disk {tool.disk} lies" if tool.disk else "tool runs"
            raise EngineUnavailable(
                f"The {which} on the member {member}, which does not see the folders of this machine ({own}): use a "
                "repository that every member reaches, such as s3: or rest:."
            )
        for folder in tool.folders.values():
            _make_folder(folder)
        volumes = (Volume(volume_of(tool.disk), HELD, read_only=not tool.writable),) if tool.disk else ()
        instance = Instance(
            name="",
            image=self._instances.image,
            pool=self._instances.pool,
            cpu=_CPU,
            memory_bytes=_MEMORY,
            processes=_PROCESSES,
            root_bytes=self._instances.root(_ROOT_BYTES),
            volumes=volumes,
            binds=((f"{HELD}/app", "/disk"),) if tool.disk else (),
            hidden=("/mnt",),
            hostname=tool.hostname,
            folders={f"/{name}": str(folder) for name, folder in tool.folders.items()} if is_here else {},
        )
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108
        program = Program(
            tool.argv,
            {**env, "SSL_CERT_FILE": str(CA_BUNDLE), **tool.env},
            "/tmp",  # noqa: S108
            tool.timeout_seconds,
            user=APP_UID,
            kept="+dac_read_search" if tool.reads_all else "",
            files=self._files,
            carried={} if is_here else {f"/{name}": folder for name, folder in tool.folders.items() if name != _CACHE},
            made=[f"/{_CACHE}"] if _CACHE in tool.folders and not is_here else [],
        )
        ended = await self._runner.run(instance, program, member, output, network=tool.network)
        full = bool(ended.exit_code) and tool.disk is not None and await self._disks.pool_is_full(tool.disk)
        return ToolExit(ended.exit_code, ended.out_of_memory, ended.timed_out, store_full=full)


def _make_folder(folder: Path) -> None:
    """Create a folder that tools own; its parent keeps other users out."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != APP_UID:
        os.chown(folder, APP_UID, APP_UID)
