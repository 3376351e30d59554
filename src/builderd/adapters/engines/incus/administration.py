"""The cluster for its operator: formed, joined, shown, emptied for maintenance, made smaller.

Incus does all of it. Added are the key of a member that the service empties, and the removal of its helper, layers and
logs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from builderd.adapters.engines.incus.client import IncusClient, IncusNotFound, IncusOptions, Json
from builderd.adapters.engines.incus.cluster import EVACUATE
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.volumes import Volumes
from builderd.domain.errors import EngineUnavailable, InvalidState, NotFound, ValidationFailed
from builderd.domain.resources import GB

PORT = 8443
_DISK = "disk-"
#: Seconds between two looks at what is left on a member.
LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class MemberState:
    """A member as Incus shows it. ``disks`` and ``instances`` are builderd's; pool and memory are GB, None if away."""

    name: str
    address: str
    status: str
    evacuating: bool
    disks: int
    instances: int
    pool_free: float | None = None
    pool_total: float | None = None
    memory_free: float | None = None
    memory_total: float | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Place of a member's storage pool: a block device that it gets whole, or a file of ``size`` (such as 50GiB)."""

    device: str | None = None
    size: str | None = None

    @property
    def config(self) -> Mapping[str, str]:
        return {"source": self.device} if self.device else {"size": self.size} if self.size else {}


class Administration:
    def __init__(self, options: IncusOptions) -> None:
        self._options = options
        self._client = IncusClient(options)
        self._volumes = Volumes(self._client, options.pool, frozenset)
        self._instances = Instances(self._client, options, ("", 0))

    async def close(self) -> None:
        await self._client.close()

    # Forming

    def form(self, name: str, address: str, pool: Pool) -> None:
        """Make this server the first member of a cluster, with the storage pool."""
        pools = [{"name": self._options.pool, "driver": "btrfs", "config": dict(pool.config)}]
        cluster = {"enabled": True, "server_name": name}
        self._preseed(
            {"config": {"core.https_address": f"{address}:{PORT}"}, "cluster": cluster, "storage_pools": pools}
        )

    def invite(self, name: str) -> str:
        """Return the token with which one server may join as the member of this name."""
        said = self._incus("cluster", "add", name, "--quiet").split()
        if not said:
            raise EngineUnavailable(f"incus cluster add {name} printed no token: see incus cluster list-tokens.")
        return said[-1]

    def join(self, token: str, address: str | None, pool: Pool) -> str:
        """Make this server a member, and return its name, which is in the token."""
        content = read_token(token)
        own = address or address_towards(content["addresses"][0])
        config = [
            {"entity": "storage-pool", "name": self._options.pool, "key": key, "value": value}
            for key, value in pool.config.items()
        ]
        name = str(content["server_name"])
        cluster = {"enabled": True, "server_name": name, "server_address": f"{own}:{PORT}", "cluster_token": token}
        self._preseed({"cluster": {**cluster, "member_config": config}})
        return name

    def _preseed(self, document: Json) -> None:
        # JSON is YAML.
        self._incus("admin", "init", "--preseed", given=json.dumps(document))

    def _incus(self, *words: str, given: str | None = None) -> str:
        """Run Incus's own client on this server. Raises ``EngineUnavailable`` with what it says."""
        program = shutil.which("incus")
        if program is None:
            raise EngineUnavailable("Incus is not installed on this machine: apt-get install incus-base incus-client")
        env = {**os.environ, "INCUS_SOCKET": str(self._options.socket)}
        ended = subprocess.run([program, *words], input=given, capture_output=True, text=True, env=env, check=False)
        if ended.returncode:
            said = ended.stderr.strip() or ended.stdout.strip()
            raise EngineUnavailable(f"incus {' '.join(words)}: {said.removeprefix('Error: ')}")
        return ended.stdout

    # State

    async def members(self) -> Sequence[MemberState]:
        """Return all members. Raises ``EngineUnavailable`` where there is no cluster."""
        found, volumes, instances = await asyncio.gather(
            self._client.get("/cluster/members", recursion="1"), self._own(self._volumes), self._own(self._instances)
        )
        disks = Counter(one["location"] for one in volumes if one["name"].startswith(_DISK))
        running = Counter(one["location"] for one in instances if one["status"] in ("Running", "Frozen"))
        return [await self._state(one, disks, running) for one in found]

    async def _own(self, parts: Volumes | Instances) -> Sequence[Json]:
        """Return all volumes or instances of the service; none before its first start, which makes its project."""
        try:
            return await parts.all()
        except IncusNotFound:
            return ()

    async def _state(self, found: Json, disks: Counter[str], running: Counter[str]) -> MemberState:
        name, status = found["server_name"], found["status"]
        address = found["url"].partition("://")[2].rpartition(":")[0]
        evacuating = bool((found.get("config") or {}).get(EVACUATE))
        shown = MemberState(name, address, status, evacuating, disks[name], running[name])
        if status == "Offline":
            return shown
        try:
            state = await self._client.get(f"/cluster/members/{name}/state")
        except EngineUnavailable:
            # Incus calls a member online for some seconds after it was killed.
            return replace(shown, status=f"{status}, does not answer")
        memory, space = state["sysinfo"], state["storage_pools"].get(self._options.pool, {}).get("space", {})
        total, used = space.get("total", 0) / GB, space.get("used", 0) / GB
        free, most = (memory["free_ram"] + memory["buffered_ram"]) / GB, memory["total_ram"] / GB
        return replace(shown, pool_free=total - used, pool_total=total, memory_free=free, memory_total=most)

    async def _member(self, name: str) -> Json:
        try:
            found: Json = await self._client.get(f"/cluster/members/{name}")
        except IncusNotFound:
            raise NotFound(f"There is no member {name} of the cluster: see builderd cluster status.") from None
        return found

    # Maintenance

    async def evacuate(
        self, name: str, progress: Callable[[Sequence[str]], None], timeout_seconds: float | None = None
    ) -> None:
        """Have the service move all builders off a member, then let Incus evacuate it.

        ``progress`` is called with the volumes of the disks that are left. Raises ``InvalidState`` once time is over.
        """
        await self._member(name)
        await self._set_leaving(name, leaving=True)
        left = await self._disks_on(name)
        try:
            async with asyncio.timeout(timeout_seconds):
                while left:
                    progress(left)
                    await asyncio.sleep(LOOK_SECONDS)
                    left = await self._disks_on(name)
        except TimeoutError:
            raise InvalidState(
                f"{len(left)} disks are left on {name} ({', '.join(left)}), and go on being moved: does the service "
                f"run (its log tells what it could not move), or does a job run there? Run the command again to wait "
                f"on, or builderd cluster restore {name} to give up."
            ) from None
        if (await self._member(name))["status"] != "Evacuated":
            await self._client.call("POST", f"/cluster/members/{name}/state", {"action": "evacuate", "mode": "stop"})

    async def restore(self, name: str) -> None:
        """Let a member take builders again."""
        if (await self._member(name))["status"] == "Evacuated":
            await self._client.call("POST", f"/cluster/members/{name}/state", {"action": "restore"})
        await self._set_leaving(name, leaving=False)

    async def _set_leaving(self, name: str, *, leaving: bool) -> None:
        found = await self._member(name)
        config = {key: value for key, value in (found.get("config") or {}).items() if key != EVACUATE}
        kept = {key: found[key] for key in ("roles", "failure_domain", "description", "groups")}
        body = {**kept, "config": {**config, EVACUATE: "true"} if leaving else config}
        await self._client.call("PUT", f"/cluster/members/{name}", body)

    async def _disks_on(self, name: str) -> Sequence[str]:
        """Return the volumes of the disks on a member, sorted."""
        volumes = await self._own(self._volumes)
        return sorted(one["name"] for one in volumes if one["location"] == name and one["name"].startswith(_DISK))

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a member for good. One with disks is refused; ``force`` removes it with all that is on it.

        Raises ``InvalidState``.
        """
        await self._member(name)
        left = await self._disks_on(name)
        if left and not force:
            raise InvalidState(
                f"{len(left)} disks of builders lie on {name}: builderd cluster evacuate {name} moves them first. With "
                "--force they are lost; builders with backups get those."
            )
        if force:
            await self._client.call("DELETE", f"/cluster/members/{name}", None, force="1")
            return
        # What the service made there besides disks: helper, layers, ended instances with their logs.
        for instance in await self._own(self._instances):
            if instance["location"] == name:
                await self._instances.delete(instance["name"])
        for volume in await self._own(self._volumes):
            if volume["location"] == name:
                await self._volumes.delete(volume["name"], name)
        await self._client.call("DELETE", f"/cluster/members/{name}")


def read_token(token: str) -> Json:
    """Return the content of a join token. Raises ``ValidationFailed``."""
    try:
        content: Json = json.loads(base64.b64decode(token, validate=True))
        is_token = bool(content["server_name"] and content["addresses"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        is_token = False
    if not is_token:
        words = "it is no token of a cluster: copy the whole line that builderd cluster add NAME prints"
        raise ValidationFailed({"token": [words]})
    return content


def address_towards(target: str) -> str:
    """Return this machine's address on the way to ``target`` (``address:port``). Raises ``ValidationFailed``."""
    host, _, port = target.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Nothing is sent.
            probe.connect((host, int(port)))
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        words = f"this machine has no way to {target}: give its own address on the members' network with --address"
        raise ValidationFailed({"address": [words]}) from None
