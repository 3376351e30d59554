"""The engine on Incus. Implements ``ports.engine.Engine``.

What it cannot do: ``strong`` isolation (a VM), memory given back by a frozen app (docs/cluster.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress

from builderd.code.model import Bundle
from builderd.core.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.core.ids import DiskId, SandboxId
from builderd.core.members import MemberReport
from builderd.core.resources import GB, Capacity, MachineUse
from builderd.engine.incus.builds import PREFIX as BUILD
from builderd.engine.incus.builds import Runner, Tools
from builderd.engine.incus.client import RETRY_SECONDS, IncusClient, IncusOptions
from builderd.engine.incus.cluster import Cluster, Members
from builderd.engine.incus.disks import MOVED_FROM, Disks, Files, LostParts
from builderd.engine.incus.helper import PREFIX as HELPER
from builderd.engine.incus.helper import Helper
from builderd.engine.incus.image import Image, ensure_image
from builderd.engine.incus.instances import Instances, Volumes, own_of, users_of
from builderd.engine.incus.layers import NEW, Layers
from builderd.engine.incus.logs import Logs
from builderd.engine.incus.network import Routes, gateway
from builderd.engine.incus.sandboxes import Sandboxes
from builderd.engine.oci.network.host_files import make_hosts
from builderd.engine.oci.network.network import host_resolvers, make_resolv_conf, parse_nameservers, resolv_conf
from builderd.engine.port import Collected, EngineOptions, Progress, Readiness
from builderd.linux.processes import is_busy
from builderd.linux.threads import run_to_completion

log = logging.getLogger(__name__)

_DOWN_GRACE_SECONDS = 5.0
#: By ``down``: with hundreds at once, members of Incus stop answering each other.
_STOPPED_AT_ONCE = 16
#: Space is tight when less than this part of the pool is free.
TIGHT = 0.2


class IncusEngine:
    """Implements ``ports.engine.Engine``. The machine is opened once by ``prepare``."""

    def __init__(self, options: EngineOptions, incus: IncusOptions) -> None:
        self._options = options
        self._incus = incus
        self._machine: Machine | None = None
        self._readiness = Readiness(False, "waiting to be prepared")
        self._preparing = asyncio.Lock()
        self._tight = False

    async def prepare(self, progress: Progress) -> None:
        async with self._preparing:
            if self._readiness.ready:
                return

            def on_progress(line: str) -> None:
                self._readiness = Readiness(False, line)
                progress(line)

            try:
                self._machine = await open_machine(self._options, self._incus, on_progress)
            except BuilderdError as error:
                self._readiness = Readiness(False, error.message)
                raise
            except OSError as error:
                self._readiness = Readiness(False, f"The engine could not be opened: {error}.")
                raise EngineUnavailable(self._readiness.message) from error
            self._readiness = Readiness(True, "ready")

    def readiness(self) -> Readiness:
        """Return whether sandboxes can be started: not while the cluster has no quorum, either."""
        if self._readiness.ready and self._machine and (reason := self._machine.members.unavailable_reason):
            return Readiness(False, reason, engine_unreachable=True)
        return self._readiness

    # Its parts

    @property
    def _here(self) -> Machine:
        """The open machine. Raises ``EngineUnavailable`` before and after."""
        if self._machine is None:
            raise EngineUnavailable(f"The engine is not ready: {self._readiness.message}.", retry_after=5)
        return self._machine

    @property
    def sandboxes(self) -> Sandboxes:
        return self._here.sandboxes

    @property
    def disks(self) -> EngineDisks:
        return EngineDisks(self._here)

    @property
    def files(self) -> Files:
        return self._here.files

    @property
    def layers(self) -> Layers:
        return self._here.layers

    @property
    def logs(self) -> Logs:
        return self._here.logs

    @property
    def tools(self) -> Tools:
        return self._here.tools

    # What concerns all of them

    def capacity(self) -> Capacity:
        return self._here.capacity

    async def use(self) -> MachineUse:
        client = IncusClient(self._incus)
        cluster = Cluster(client, self._incus)
        try:
            await cluster.look()
            return await cluster.use(self._options.store.overcommit)
        finally:
            await client.close()

    def is_busy(self) -> bool:
        return is_busy()

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        layers = await self._here.layers.collect(frozenset(keep), unused_seconds)
        self._tight = await self._here.cluster.free_share() < TIGHT
        await self._here.measure()
        return Collected(layers, [], 0)

    def is_tight(self) -> bool:
        return self._tight

    # Members

    async def members(self) -> Sequence[MemberReport]:
        here = self._here
        return here.members.reports(self._incus, here.capacities) if here.cluster.clustered else []

    async def disk_members(self) -> Mapping[DiskId, str]:
        here = self._here
        return await here.disks.members() if here.cluster.clustered else {}

    async def move_disk(self, disk: DiskId) -> str:
        here = self._here
        async with here.disks.lock(disk):
            found = await here.disks.existing(disk)
            member = str(found.get("location") or "")
            if not here.disks.is_leaving(disk, member):
                return member
            await here.sandboxes.release(disk, users_of(found))
            return await here.disks.move(disk, found)

    def write_off(self, disk: DiskId) -> None:
        self._here.disks.written_off.add(disk)

    # The end

    async def close(self) -> None:
        machine, self._machine = self._machine, None
        self._readiness = Readiness(False, "closed")
        if machine:
            await machine.close()

    async def down(self) -> None:
        """Stop every sandbox and the helpers. Disks, logs and layers stay in Incus."""
        if self._machine is None:
            self._machine = await open_machine(self._options, self._incus, lambda line: None, prepare=False)
        machine = self._machine
        self._readiness = Readiness(False, "going down")
        turns = asyncio.Semaphore(_STOPPED_AT_ONCE)

        async def stop(sandbox: SandboxId) -> None:
            async with turns:
                await machine.sandboxes.stop(sandbox, _DOWN_GRACE_SECONDS)

        alive = [report.id for report in await machine.sandboxes.list_sandboxes() if report.alive]
        ended = await asyncio.gather(*map(stop, alive), return_exceptions=True)
        failed = [error for error in ended if isinstance(error, Exception)]
        with suppress(BuilderdError) if failed else nullcontext():
            await machine.remove_left_overs()
        if failed:
            raise EngineUnavailable(
                f"{len(failed)} of {len(alive)} sandboxes could not be stopped: run builderd down again. "
                f"The last failure: {failed[-1]!r}",
                retry_after=RETRY_SECONDS,
            )
        self._readiness = Readiness(False, "down")


class EngineDisks:
    """Disks, and the sandboxes that have them. Implements ``ports.engine.Disks``."""

    def __init__(self, machine: Machine) -> None:
        self._here = machine
        self._disks = machine.disks
        self.disk, self.create_disk, self.mark_bundle = self._disks.report, self._disks.create, self._disks.mark_bundle

    def reserve_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Refuse a disk that no pool has room for; a volume of Incus takes its space as it is written."""
        # A disk lies on one member.
        largest = max((one.disk for one in self._here.capacities.values()), default=0.0)
        if size_bytes > (pool := int(largest * GB / self._here.options.store.overcommit)):
            raise NoCapacity(
                f"The storage pool of Incus has {pool / GB:.1f} GB on a member, and a disk of {size_bytes / GB:.1f} GB "
                "is asked for: ask for a smaller one, or enlarge the pool."
            )

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        found, volume = await self._disks.existing(disk), ""
        await self._here.sandboxes.refuse_users(disk, users_of(found))
        if build_key:
            volume, _ = await self._here.layers.volume(build_key, str(found.get("location") or ""))
        await self._disks.put_bundle(found, bundle, replaced, build_key, volume)

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        # A snapshot of one moment: what the app has synced is in it, as after a power cut.
        await self._disks.clone(source, target, size_bytes)
        if for_backup:
            await self._disks.put_home_in(target)

    async def delete_disk(self, disk: DiskId) -> None:
        async with self._disks.lock(disk):
            if await self._here.lost.delete_later(disk, self._here.members.away_names()):
                return
            if (found := await self._disks.find(disk)) is not None:
                await self._here.sandboxes.release(disk, users_of(found))
                await self._disks.delete(disk, found)


class Machine:
    """Parts of one service's engine. Nothing is asked of Incus when they are put together."""

    def __init__(
        self, options: EngineOptions, incus: IncusOptions, client: IncusClient, cluster: Cluster, image: Image
    ) -> None:
        self.options = options
        self.client = client
        self.cluster = cluster
        self.image = image
        #: Of the members, as last measured.
        self.capacities: Mapping[str, Capacity] = {}
        self._helpers: dict[str, Helper] = {}
        self._placing = asyncio.Lock()
        self.members = members = Members(cluster)
        client.unavailable_reason = lambda: members.unavailable_reason
        self.volumes = volumes = Volumes(client, incus.pool, members.away_names)
        self.instances = instances = Instances(
            client, incus, (image.name, image.unpacked_bytes), members.away_names, options.reserved
        )
        self.runner = Runner(client, instances)
        self.disks = disks = Disks(volumes, self.helper, self._place, members.leaving_names)
        self.layers = Layers(
            *(volumes, instances, self.runner, self.helper, self._place, host_files),
            base_id=image.base_id,
            total_bytes=lambda: int(self.capacity.disk * GB / options.store.overcommit),
        )
        self.routes = Routes(cluster.own, members.address)
        self.lost = LostParts(client, volumes, instances, self.routes)
        own = options, gateway(incus.subnet), own_resolv_conf()
        self.sandboxes = Sandboxes(*own, instances, disks, self.layers, self.routes, self.lost, members)
        self.files = Files(disks, self.helper)
        self.logs = Logs(instances)
        self.tools = Tools(self.runner, instances, disks, members, host_files(), self.sandboxes.refuse_while_used)

    def helper(self, member: str) -> Helper:
        """Return the helper of a member; a server without a cluster calls itself "none"."""
        name = member if self.cluster.clustered else ""
        return self._helpers.setdefault(name, Helper(self.client, self.instances, name))

    async def _place(self) -> str:
        """Return the member of a new disk or build. Raises ``NoCapacity``."""
        if not self.cluster.clustered:
            await self.cluster.place([])
            return ""
        async with self._placing:
            found = await self.volumes.placed()
            return await self.cluster.place([member for name, member in found if name.startswith("disk-")])

    @property
    def capacity(self) -> Capacity:
        """Return what all members have together, but for those that are evacuated.

        A member that is away counts as its builders do, which wait for it.
        """
        leaving = self.members.leaving_names()
        have = [one for name, one in self.capacities.items() if name not in leaving]
        return Capacity(sum(one.cpu for one in have), sum(one.memory for one in have), sum(one.disk for one in have))

    async def measure(self) -> None:
        known = {name: one for name, one in self.capacities.items() if name in self.members.away_names()}
        self.capacities = {**known, **await self.cluster.capacities(self.options.store.overcommit)}

    async def remove_left_overs(self) -> None:
        """Remove what an earlier service left: builds, half-made layers, helpers.

        Of a disk whose move was cut off, the original stays while there is one. What lies on a member that is away is
        removed at a later start.
        """
        away = self.members.away_names()
        for found in await self.instances.all():
            name, member = found["name"], found.get("location") or ""
            if member not in away and name.startswith((BUILD, HELPER)):
                await self.instances.delete(name)
        volumes = await self.volumes.all()
        places = {(volume["name"], volume.get("location")) for volume in volumes}
        for volume in volumes:
            name, member = volume["name"], volume.get("location") or ""
            if member in away:
                continue
            origin = own_of(volume).get(MOVED_FROM)
            if name.startswith(NEW) or (name, origin) in places:
                await self.volumes.delete(name, member)
            elif origin:
                await self.volumes.change(name, member, {MOVED_FROM: ""})

    async def prepare(self, progress: Progress) -> None:
        """Make what is missing in Incus, remove what an earlier service left, and watch the members from now on."""
        cluster, members = self.cluster, self.members
        await cluster.ensure_project()
        await cluster.ensure_pool()
        await cluster.ensure_network(self.options, host_resolvers())
        await cluster.ensure_image(self.image, progress)
        await members.look()
        await self.remove_left_overs()
        if cluster.own not in members.leaving_names():
            # An evacuated member starts nothing, and has no disks.
            progress("helper: starting the instance that works on files")
            await self.helper(cluster.own).open()
        await self.lost.load()
        await self.lost.finish_on(members.online_names())
        await self.sandboxes.adopt()
        await self.measure()
        members.watch(self.on_change)

    async def on_change(self) -> None:
        """Prepare members that joined or returned: their addresses are allowed, what was overtaken there is removed."""
        names = self.members.online_names()
        # Disks of members that are still away are written off again.
        self.disks.written_off.clear()
        # First: what was overtaken must not run beside what took its place.
        await self.lost.finish_on(names)
        await self.cluster.ensure_network(self.options, host_resolvers())
        await self.sandboxes.adopt_on(names)
        await self.measure()

    async def close(self) -> None:
        await self.members.close()
        await self.client.close()


async def open_machine(
    options: EngineOptions, incus: IncusOptions, progress: Progress, *, prepare: bool = True
) -> Machine:
    """Connect to Incus and, with ``prepare``, make what the engine needs there."""
    client = IncusClient(incus)
    try:
        cluster = Cluster(client, incus)
        await cluster.look()
        image = await run_to_completion(ensure_image, progress, options.package_index)
        machine = Machine(options, incus, client, cluster, image)
        if prepare:
            await machine.prepare(progress)
    except BaseException:
        await client.close()
        raise
    return machine


def own_resolv_conf() -> str:
    """Return the text of ``/etc/resolv.conf`` of instances: the name servers of this host that they can reach."""
    text = resolv_conf()
    return make_resolv_conf(parse_nameservers(text), text)


def host_files() -> dict[str, bytes]:
    """Return the files of builds and tools that come from this host."""
    return {"/etc/resolv.conf": own_resolv_conf().encode(), "/etc/hosts": make_hosts("127.0.0.1", "build").encode()}
