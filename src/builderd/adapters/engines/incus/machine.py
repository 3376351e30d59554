"""Parts of the engine, put together once the server has been asked what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from builderd.adapters.engines.incus.builds import PREFIX as BUILD
from builderd.adapters.engines.incus.builds import Runner, Tools
from builderd.adapters.engines.incus.client import IncusClient, IncusOptions
from builderd.adapters.engines.incus.cluster import Cluster, Member, Members
from builderd.adapters.engines.incus.disks import MOVED_FROM, Disks, Files, Moves
from builderd.adapters.engines.incus.helper import PREFIX as HELPER
from builderd.adapters.engines.incus.helper import Helper
from builderd.adapters.engines.incus.image import Image, ensure_image
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.layers import NEW, Layers
from builderd.adapters.engines.incus.logs import Logs
from builderd.adapters.engines.incus.lost import LostParts
from builderd.adapters.engines.incus.network import Routes, gateway
from builderd.adapters.engines.incus.process import Processes
from builderd.adapters.engines.incus.reports import Events
from builderd.adapters.engines.incus.sandboxes import AppFiles, Sandboxes
from builderd.adapters.engines.incus.usage import Ports, Usage
from builderd.adapters.engines.incus.volumes import Volumes, own_of
from builderd.adapters.engines.oci.network.host_files import make_hosts
from builderd.adapters.engines.oci.network.network import host_resolvers, resolv_conf
from builderd.adapters.engines.oci.network.resolvers import make_resolv_conf, parse_nameservers
from builderd.domain.resources import GB, Capacity
from builderd.linux.threads import run_to_completion
from builderd.ports.engine import EngineOptions, Progress


class Machine:
    """Parts of one service's engine. Nothing is asked of Incus when they are put together."""

    def __init__(
        self, options: EngineOptions, incus: IncusOptions, client: IncusClient, cluster: Cluster, image: Image
    ) -> None:
        self.options = options
        self.client = client
        self.cluster = cluster
        self.image = image
        self._subnet = incus.subnet
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
        instances.on_left = members.prepare_again
        instances.pause_requests = options.pause_requests
        self.runner = Runner(client, instances)
        self.disks = disks = Disks(volumes, self.helper, self._place)
        disks.on_full = instances.on_full = cluster.note_full
        self.moves = Moves(volumes, disks, self._place, members.leaving_names)
        disks.is_leaving = self.moves.is_due
        self.layers = Layers(volumes, instances, self.runner, self.helper, self._place, host_files)
        self.routes = Routes(cluster.own, members.address)
        self.lost = LostParts(client, volumes, instances, self.routes)
        app_files = AppFiles(self._url_on, own_resolv_conf(), options.log_limit)
        self.sandboxes = Sandboxes(instances, disks, self.layers, app_files, self.routes, self.lost)
        self.files = Files(disks, self.helper)
        self.usage = Usage(client, instances, self.sandboxes, members.away_names)
        self.ports = Ports(client, self.sandboxes)
        self.processes = Processes(client)
        self.logs = Logs(client)
        self.tools = Tools(self.runner, instances, disks, members, host_files())
        self.events = Events(client, self.sandboxes.unreported_ends)

    def helper(self, member: str) -> Helper:
        """Return the helper of a member; a server without a cluster calls itself "none"."""
        name = member if self.cluster.clustered else ""
        return self._helpers.setdefault(name, Helper(self.client, self.instances, name))

    async def _place(self) -> str:
        """Return the member of a new disk or build."""
        if not self.cluster.clustered:
            return ""
        async with self._placing:
            found = await self.volumes.placed()
            return await self.cluster.place([member for name, member in found if name.startswith("disk-")])

    async def _url_on(self, member: str) -> str:
        """Return the URL at which apps of a member reach the service."""
        own = self.cluster.own
        # A member without an IPv4 address has none for apps of others: they find nothing at their own gateway.
        host = await self.members.address(own) if own and member != own else ""
        return f"http://{host or gateway(self._subnet)}:{self.options.inside_port}"

    @property
    def capacity(self) -> Capacity:
        """Return what all members have together, but for those that are evacuated.

        A member that is away counts as its builders do, which wait for it.
        """
        leaving = self.members.leaving_names()
        have = [one for name, one in self.capacities.items() if name not in leaving]
        return Capacity(sum(one.cpu for one in have), sum(one.memory for one in have), sum(one.disk for one in have))

    @property
    def disk_bytes(self) -> int:
        """Return the bytes of all pools together."""
        return int(self.capacity.disk * GB / self.options.store.overcommit)

    @property
    def pool_bytes(self) -> int:
        """Return the bytes of the largest pool: a disk lies on one member."""
        largest = max((one.disk for one in self.capacities.values()), default=0.0)
        return int(largest * GB / self.options.store.overcommit)

    async def measure(self) -> None:
        known = {name: one for name, one in self.capacities.items() if name in self.members.away_names()}
        self.capacities = {**known, **await self.cluster.capacities(self.options.store.overcommit)}

    async def remove_left_overs(self, members: Collection[str]) -> None:
        """Remove what an earlier service left on these members: builds, half-made layers, helpers of other releases.

        Builds, layers and copies of disks that this service makes meanwhile stay. Of a disk whose move was cut off, the
        original stays while there is one.
        """
        for found in await self.instances.all():
            name, member = found["name"], found.get("location") or ""
            if not self._is_on(member, members):
                continue
            helper = self.helper(member)
            if name == helper.name:
                await helper.let_go_idle()
            elif name.startswith((BUILD, HELPER)) and name not in self.runner.own:
                await self.instances.delete(name)
        volumes = await self.volumes.all()
        places = {(volume["name"], volume.get("location")) for volume in volumes}
        for volume in volumes:
            name, member = volume["name"], volume.get("location") or ""
            if not self._is_on(member, members):
                continue
            origin = "" if self.moves.has(name) else own_of(volume).get(MOVED_FROM)
            if (name.startswith(NEW) and name not in self.layers.own) or (name, origin) in places:
                await self.volumes.delete(name, member)
            elif origin:
                await self.volumes.change(name, member, {MOVED_FROM: ""})

    def service_address(self) -> str:
        """Return the address at which apps on other members reach the service; "" without others."""
        found = (one.address for one in self.members.all() if self.cluster.own and one.name == self.cluster.own)
        return next(found, "")

    def _is_on(self, member: str, members: Collection[str]) -> bool:
        return not self.cluster.clustered or member in members

    async def prepare_network(self) -> None:
        """Make the network and its access list, which names all members."""
        options = self.options
        await self.cluster.ensure_network(options.inside_port, options.allow, options.deny, host_resolvers())

    async def on_arrival(self, arrived: Sequence[Member]) -> None:
        """Prepare members that joined or returned: their addresses are allowed, and what was left there is removed."""
        await self.disks.take_back(self.members.away_names())
        # First: what was overtaken must not run beside what took its place.
        await self.lost.finish_on({member.name for member in arrived})
        await self.prepare_network()
        await self.remove_left_overs({member.name for member in arrived})
        await self.sandboxes.adopt_on({member.name for member in arrived})
        await self.measure()

    async def remove_own_instances(self) -> None:
        """Remove helpers and builds: what is not an app's."""
        for found in await self.instances.all():
            if found["name"].startswith((BUILD, HELPER)):
                await self.instances.delete(found["name"])

    async def close(self) -> None:
        await self.members.close()
        await self.events.close()
        await self.client.close()


async def open_machine(
    options: EngineOptions, incus: IncusOptions, progress: Progress, *, prepare: bool = True
) -> Machine:
    """Connect to Incus and, with ``prepare``, make what the engine needs there."""
    client = IncusClient(incus)
    try:
        cluster = Cluster(client, incus)
        await cluster.look()
        image = await run_to_completion(ensure_image, progress)
        machine = Machine(options, incus, client, cluster, image)
        if prepare:
            await _prepare(machine, progress)
    except BaseException:
        await client.close()
        raise
    return machine


async def _prepare(machine: Machine, progress: Progress) -> None:
    cluster = machine.cluster
    await cluster.ensure_project()
    await cluster.ensure_pool()
    await machine.prepare_network()
    await cluster.ensure_image(machine.image, progress)
    await machine.members.look()
    await machine.remove_left_overs(machine.members.online_names())
    if not any(one.name == cluster.own and one.leaving for one in machine.members.all()):
        # An evacuated member starts nothing, and has no disks.
        progress("helper: starting the instance that works on files")
        await machine.helper(cluster.own).open()
    await machine.lost.load()
    await machine.lost.finish_on(machine.members.online_names())
    machine.members.prepared()
    await machine.sandboxes.adopt()
    await machine.measure()
    await machine.events.open()
    machine.members.watch(machine.on_arrival)


def own_resolv_conf() -> str:
    """Return the text of ``/etc/resolv.conf`` of instances: the name servers of this host that they can reach."""
    text = resolv_conf()
    return make_resolv_conf(parse_nameservers(text), text)


def host_files() -> dict[str, bytes]:
    """Return the files of builds and tools that come from this host."""
    return {"/etc/resolv.conf": own_resolv_conf().encode(), "/etc/hosts": make_hosts("127.0.0.1", "build").encode()}
