"""The engine on Incus as a kind of engine; implements ``ports.engine.EngineProvider`` and ``ClusterProvider``.

The claim of the service that works is in the configuration of an empty project: a change of one is stored by quorum and
told to no member, so a member that was just cut off does not hold it up (that of a profile took 6 to 20 s then).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from builderd.adapters.engines.incus.administration import Administration, MemberState
from builderd.adapters.engines.incus.client import IncusClient, IncusNotFound, IncusOptions
from builderd.adapters.engines.incus.cluster import Cluster
from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.adapters.engines.incus.image import ensure_image
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.network import network_config
from builderd.adapters.engines.oci.storage.base import find_host_base
from builderd.domain.errors import BuilderdError
from builderd.domain.inventory import SEARCH_PATH, EngineInventory, PreflightCheck
from builderd.ports.engine import Engine, EngineOptions, Progress

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
        return [_check_version(server), *members, pool, network]

    async def _members(self) -> Sequence[MemberState]:
        administration = Administration(self._incus)
        try:
            return await administration.members()
        finally:
            await administration.close()

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        return None

    def build_base(self, progress: Progress) -> str:
        return ensure_image(progress).base_id

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


def _check_version(server: dict[str, dict[str, str]]) -> PreflightCheck:
    text = server["environment"]["server_version"]
    number = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    cost = "calls that the engine makes may be missing: use Debian's 6.0 or later"
    return PreflightCheck("Incus", number >= LEAST_VERSION, f"version {text}", cost, True)


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
