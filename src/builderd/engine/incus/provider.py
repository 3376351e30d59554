"""The engine on Incus as a kind of engine; implements ``ports.engine.EngineProvider`` and ``ClusterProvider``.

The claim of the service that works is in the configuration of an empty project: a change of one is stored by quorum and
told to no member, so a member that was just cut off does not delay it (that of a profile took 6 to 20 s then).

``Administration`` is the cluster for its operator: formed, joined, shown, emptied for maintenance, made smaller. Incus
does all of it; added are the key of a member that the service empties, and the removal of its helper, layers and logs.
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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from builderd.core.errors import BuilderdError, EngineUnavailable, InvalidState, NotFound, ValidationFailed
from builderd.core.resources import GB
from builderd.engine.incus.client import IncusClient, IncusNotFound, IncusOptions, Json
from builderd.engine.incus.cluster import EVACUATE, Cluster
from builderd.engine.incus.engine import IncusEngine
from builderd.engine.incus.image import ensure_image
from builderd.engine.incus.instance import OWN
from builderd.engine.incus.instances import Instances, Volumes
from builderd.engine.incus.network import network_config
from builderd.engine.inventory import SEARCH_PATH, EngineInventory, PreflightCheck
from builderd.engine.oci.storage.base import find_host_base
from builderd.engine.port import Engine, EngineOptions, Progress

_CLAIM = f"{OWN}service"
_EMPTY = dict.fromkeys(
    ("features.images", "features.profiles", "features.storage.volumes", "features.networks"), "false"
)

#: The first release with all that the engine uses.
LEAST_VERSION = (6, 0)
#: A member's space is tight when less than this part of its pool is free.
TIGHT = 0.1
#: (program, Debian package, consequence of its lack)
PROGRAMS = (
    ("s6-log", "s6", "the apps' logs cannot be kept"),
    ("mksquashfs", "squashfs-tools", "the image of the instances cannot be made"),
    ("mmdebstrap", "mmdebstrap", "the base root file system cannot be made"),
)
_NO_INCUS = (
    "no app can be started: apt-get install incus-base incus-client, then builderd cluster init, or set incus.socket"
)


class IncusProvider:
    def __init__(self, options: IncusOptions | None = None) -> None:
        self._incus = options or IncusOptions()

    def configured(self, section: dict[str, Any]) -> IncusProvider:
        """Return the provider with the fields of the settings' section ``incus``."""
        return IncusProvider(IncusOptions(**section))

    def make(self, options: EngineOptions) -> Engine:
        return IncusEngine(options, self._incus)

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        programs = [
            PreflightCheck(
                name,
                (path := shutil.which(name, path=SEARCH_PATH)) is not None,
                path or "not installed",
                f"{cost}: apt-get install {package}",
                True,
            )
            for name, package, cost in PROGRAMS
        ]
        return [*programs, *asyncio.run(self._check_incus())]

    async def _check_incus(self) -> Sequence[PreflightCheck]:
        try:
            async with self._client() as client:
                server, cluster = await client.get(""), Cluster(client, self._incus)
                await cluster.look()
                members = [PreflightCheck("members", True, "no cluster: one server", "", False)]
                if cluster.clustered:
                    members = [_check_member(one) for one in await self._members()]
                try:
                    await cluster.ensure_pool()
                    pool = PreflightCheck("storage pool", True, self._incus.pool, "", True)
                except BuilderdError as error:
                    pool = PreflightCheck("storage pool", False, error.message, "there is nowhere to keep disks", True)
                network = await _check_network(client, self._incus)
        except BuilderdError as error:
            return [PreflightCheck("Incus", False, error.message, _NO_INCUS, True)]
        text = server["environment"]["server_version"]
        number = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
        cost = "calls that the engine makes may be missing: use Debian's 6.0 or later"
        return [
            PreflightCheck("Incus", number >= LEAST_VERSION, f"version {text}", cost, True),
            *members,
            pool,
            network,
        ]

    async def _members(self) -> Sequence[MemberState]:
        administration = Administration(self._incus)
        try:
            return await administration.members()
        finally:
            await administration.close()

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        return None

    def build_base(self, progress: Progress, index: str | None) -> str:
        return ensure_image(progress, index).base_id

    def find_base(self) -> Path | None:
        base = find_host_base()
        return base.root if base else None

    def networks(self) -> Sequence[IPv4Network]:
        return [self._incus.subnet]

    async def disks_id(self) -> str:
        """Return the fingerprint of the certificate, which all members share, with project and pool."""
        async with self._client() as client:
            environment = (await client.get(""))["environment"]
        return f"{environment['certificate_fingerprint'][:16]}/{self._incus.project}/{self._incus.pool}"

    async def claimant(self) -> str:
        async with self._client() as client:
            try:
                found = await client.get(f"/projects/{self._claims}", project="default")
            except IncusNotFound:
                return ""
        return str(found["config"].get(_CLAIM, ""))

    async def claim(self, service: str) -> None:
        content: dict[str, Any] = {"description": "the service of builderd", "config": {**_EMPTY, _CLAIM: service}}
        async with self._client() as client:
            try:
                await client.call("PUT", f"/projects/{self._claims}", content, project="default")
            except IncusNotFound:
                await client.call("POST", "/projects", {"name": self._claims, **content}, project="default")

    @property
    def _claims(self) -> str:
        """Return the name of the project that has the claim."""
        return f"{self._incus.project}-service"

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[IncusClient]:
        client = IncusClient(self._incus)
        try:
            yield client
        finally:
            await client.close()


def _check_member(member: MemberState) -> PreflightCheck:
    name = f"member {member.name}"
    if member.pool_free is None or member.pool_total is None:
        cost = "apps whose disk lies there do not run: see incus cluster list"
        return PreflightCheck(name, False, f"{member.address}: {member.status}", cost, False)
    detail = (
        f"{member.address}: {member.status}{', evacuating' if member.evacuating else ''}, {member.disks} disks, "
        f"pool {member.pool_free:.1f} of {member.pool_total:.1f} GB free"
    )
    tight = member.pool_free < TIGHT * member.pool_total
    return PreflightCheck(name, not tight, detail, "new disks there may not fit: enlarge its pool", False)


async def _check_network(client: IncusClient, options: IncusOptions) -> PreflightCheck:
    cost = "the service makes it when it starts; another network of its name or subnet is in its way"
    try:
        found = await client.get(f"/networks/{options.network}")
    except IncusNotFound:
        return PreflightCheck("network", True, f"{options.network}: not made yet", cost, False)
    differing = [key for key, value in sorted(network_config(options).items()) if found["config"].get(key) != value]
    detail = f"{options.network} {options.subnet}"
    if differing:
        detail = f"{options.network} differs: {', '.join(differing)}"
    return PreflightCheck("network", not differing, detail, cost, False)


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
