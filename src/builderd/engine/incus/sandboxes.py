"""Sandboxes: an instance for each run of an app, started by an order that only this service gives."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from weakref import WeakValueDictionary

from websockets.exceptions import ConnectionClosed

from builderd.core.errors import BuilderdError, EngineUnavailable, InvalidState, NotFound
from builderd.core.ids import DiskId, SandboxId
from builderd.core.loops import counted
from builderd.dependencies.model import APP, app_folder
from builderd.engine.incus import client, image
from builderd.engine.incus.client import IncusConflict, IncusError, Json, unless_full
from builderd.engine.incus.cluster import Members
from builderd.engine.incus.disks import Disks, LostParts, volume_of
from builderd.engine.incus.instance import DISK, LAYER_BINDS, LAYER_PATH, OWN, Instance, Volume, mirror
from builderd.engine.incus.instances import Instances, own_of, users_of
from builderd.engine.incus.layers import Layers
from builderd.engine.incus.network import Routes
from builderd.engine.incus.process import IncusProcess, NotRunningError, run_to_end
from builderd.engine.incus.reports import (
    PREFIX,
    Ends,
    Ports,
    Usage,
    ended_report,
    is_sandbox,
    make_report,
    missing_report,
    name_of,
    partial_report,
    sandbox_of,
    state_of,
)
from builderd.engine.oci.network.host_files import HOME, make_hosts
from builderd.engine.oci.runtime.run import PIDS, WAIT, app_env, brings_packages
from builderd.engine.port import EngineOptions, Process
from builderd.executions.model import ProcessSpec
from builderd.sandboxes.model import EndCause, SandboxReport, SandboxSpec, SandboxState
from builderd.versions.model import Isolation

log = logging.getLogger(__name__)
#: Logs of ended sandboxes that are kept of a builder: each keeps its instance.
KEPT_LOGS = 3
#: Open commands of one sandbox: each has four connections to Incus.
MAX_OPEN = 64
_STATE_SECONDS = 30
#: Actions of events.
_ENDED = ("instance-shutdown", "instance-stopped")
#: Status of an instance that needs the action no more.
_DONE = {"freeze": ("Frozen", "Stopped"), "unfreeze": ("Running", "Ready", "Thawed", "Stopping", "Stopped")}
_NO_VM = (
    "Strong isolation needs virtual machines, which the engine incus does not start yet: leave isolation out, or use "
    "the engine oci with gVisor."
)


class Sandboxes:
    """Implements ``ports.engine.Sandboxes``. ``gateway`` is the address of the bridge on each member."""

    def __init__(
        self,
        options: EngineOptions,
        gateway: str,
        resolv_conf: str,
        instances: Instances,
        disks: Disks,
        layers: Layers,
        routes: Routes,
        lost: LostParts,
        members: Members,
    ) -> None:
        self._client = instances.client
        self._options = options
        self.gateway = gateway
        self._resolv_conf = resolv_conf
        self._lost = lost
        self._routes = routes
        self._members = members
        self._instances = instances
        self._disks = disks
        self._layers = layers
        #: One lock an instance that is frozen or thawed.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ends = Ends(instances)
        #: Open processes in each instance.
        self._open: Counter[str] = Counter()
        #: Names of instances known to have got their order.
        self._ordered: set[str] = set()
        ports, usage = Ports(instances.client, self.running), Usage(instances, self.running, members.away_names)
        self.listening = ports.listening
        self.usage, self.usages = usage.read, usage.read_many

    @property
    def further_address(self) -> str:
        """Return the address at which apps on other members reach the service; "" without others."""
        own = self._members.own
        return next((one.address for one in self._members.all() if own and one.name == own), "")

    async def _url_on(self, member: str) -> str:
        """Return the URL at which apps of a member reach the service."""
        own = self._members.own
        # A member without an IPv4 address has none for apps of others: they find nothing at their own gateway.
        host = await self._members.address(own) if own and member != own else ""
        return f"http://{host or self.gateway}:{self._options.inside_port}"

    def supports(self, isolation: Isolation) -> str | None:
        return None if isolation is Isolation.STANDARD else _NO_VM

    # Start

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        if refusal := self.supports(spec.isolation):
            raise EngineUnavailable(refusal)
        async with self._disks.lock(spec.disk):
            return await self._start(spec)

    async def _start(self, spec: SandboxSpec) -> SandboxReport:
        found, disk = await asyncio.gather(self._instances.find(name_of(spec.id)), self._disks.find(spec.disk))
        if found and is_sandbox(found) and await self._has_order(found):
            return await self._report(found)
        if found:
            # Left by a start that broke off, or kept for the log of a trial that is repeated.
            self._ordered.discard(found["name"])
            await self._abandon(found)
        if disk is None:
            raise NotFound(f"There is no disk {spec.disk}.")
        await self.refuse_users(spec.disk, users_of(disk), spec.process)
        # The oldest instances that are kept for their logs.
        for name in (await self._instances.kept(spec.builder_id))[:-KEPT_LOGS]:
            await self._instances.delete(name)
        member = str(disk.get("location") or "")
        instance = await self._instance(spec, member)
        name, address = instance.name, await self._make(spec, instance, member)
        code, output = await run_to_end(self._client, name, image.DELIVER, await self._order(spec, address, member))
        # An app that ends at once ends its instance, and with it the program that delivered its order.
        if code and not ((found := await self._instances.find(name)) and await self._has_order(found)):
            raise unless_full(output, "The app could not be started")
        self._ordered.add(name)
        # An app that has ended by now is reported by its next observation.
        config = {f"{OWN}{key}": value for key, value in {**instance.own, "ip": address}.items()}
        return make_report({"name": name, "location": member, "status": "Running", "config": config})

    async def _make(self, spec: SandboxSpec, instance: Instance, member: str) -> str:
        """Make the instance and the way to it, and return its address; nothing of it is left where that fails."""
        try:
            address = await self._instances.create(instance, member, egress=spec.egress)
            await self._routes.add(address, member)
        except IncusConflict as error:
            raise InvalidState(f"The sandbox {spec.id} is being started already.") from error
        except BaseException as error:
            # Where the member is away it is removed at the next start.
            with suppress(EngineUnavailable):
                await asyncio.shield(self._instances.delete(instance.name))
            if isinstance(error, IncusError) and "not found" in error.message.lower():
                raise NotFound(f"The disk or the layer of the sandbox {spec.id} is gone.") from error
            raise
        return address

    async def _abandon(self, found: Json) -> None:
        """Remove an instance that never got its order, and the way to it."""
        await self._routes.remove(own_of(found).get("ip", ""))
        await self._instances.delete(found["name"])

    async def _instance(self, spec: SandboxSpec, member: str) -> Instance:
        volumes = [Volume(volume_of(spec.disk), DISK)]
        binds: tuple[tuple[str, str], ...] = ((f"{DISK}/app", APP), (f"{DISK}/home", HOME))
        if spec.layer_key:
            layer, has_packages = await self._layers.volume(spec.layer_key, member)
            volumes.append(Volume(layer, LAYER_PATH, read_only=True))
            binds += LAYER_BINDS
            if has_packages and not brings_packages(spec.entrypoint):
                binds += (mirror(spec.root),)
        limits = spec.resources
        return replace(
            self._instances.template(cpu=limits.cpu, memory_bytes=limits.memory_bytes, processes=PIDS),
            name=name_of(spec.id),
            volumes=tuple(volumes),
            binds=binds,
            hidden=(DISK, LAYER_PATH) if spec.layer_key else (DISK,),
            hostname=spec.hostname,
            own={
                "builder": spec.builder_id,
                "disk": spec.disk,
                "layer": spec.layer_key or "",
                "port": str(spec.port),
                "process": spec.process,
                "started": f"{time.time():.6f}",
            },
        )

    async def _order(self, spec: SandboxSpec, address: str, member: str) -> bytes:
        files = {
            "/etc/hosts": make_hosts(address, spec.hostname),
            "/etc/hostname": f"{spec.hostname}\n",
            "/etc/resolv.conf": self._resolv_conf,
        }
        argv = ("/bin/sh", "-c", WAIT + spec.entrypoint)
        env = app_env(spec, await self._url_on(member))
        return image.order(argv, env, files, spec.secret_files, self._options.log_limit, app_folder(spec.root))

    async def refuse_while_used(self, disk: DiskId) -> None:
        """Raise ``InvalidState`` while a sandbox runs on the disk, ``NotFound`` without the disk."""
        await self.refuse_users(disk, users_of(await self._disks.existing(disk)))

    async def refuse_users(self, disk: DiskId, users: Collection[str], process: str | None = None) -> None:
        """Raise ``InvalidState`` while a sandbox runs in one of these instances, which have the disk.

        Given a ``process``, "" for the app's own: while a sandbox of it runs there; others share the disk.
        """
        if user := await self._running_of(users, process):
            if self._lost.has(user["name"]):
                # Its member has just returned.
                await self._lost.end(user["name"])
                return
            raise InvalidState(f"A sandbox runs on the disk {disk}: stop it first.")

    async def _running_of(self, users: Collection[str], process: str | None) -> Json | None:
        for name in users:
            found = await self._instances.find(name) if name.startswith(PREFIX) else None
            is_it = found is not None and process in (None, own_of(found).get("process", ""))
            if found and is_it and _runs(found) and await self._has_order(found):
                return found
        return None

    # Reports

    async def _find(self, sandbox: SandboxId) -> Json | None:
        if not sandbox.isalnum():
            return None
        found = await self._instances.find(name_of(sandbox))
        if found is None or not is_sandbox(found) or self._lost.has(found["name"]):
            return None
        return None if await self._is_written_off(found) else found

    async def running(self, sandbox: SandboxId) -> Json | None:
        """Return the instance of a sandbox that runs or is frozen."""
        found = await self._find(sandbox)
        return found if found and _runs(found) and await self._has_order(found) else None

    async def _has_order(self, found: Json) -> bool:
        """Return True if the instance got its order; one without was left by an interrupted start."""
        name = found["name"]
        if name in self._ordered or "end" in own_of(found):
            return True
        if found["status"] == "Error":
            # Of a member that is away: not to be known now.
            return True
        if await self._ends.read(name, image.ORDERED) is None:
            return False
        self._ordered.add(name)
        return True

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        found = await self._instances.find(name_of(sandbox)) if sandbox.isalnum() else None
        if found is None or not is_sandbox(found):
            return missing_report(sandbox)
        if self._lost.has(found["name"]):
            return ended_report(found, EndCause.STOPPED)
        if await self._is_written_off(found):
            return ended_report(found, EndCause.HOST_RESTARTED)
        return await self._report(found)

    async def _is_written_off(self, found: Json) -> bool:
        """Return True if its disk is; of an instance whose member is away, Incus shows the name alone."""
        return found["status"] == "Error" and await self._disks.has_written_off(found["name"])

    async def _report(self, found: Json) -> SandboxReport:
        if not await self._has_order(found):
            return partial_report(found)
        if state_of(found) is SandboxState.EXITED and "end" not in own_of(found):
            found = await self._ends.write(found)
        return make_report(found)

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        """Return the reports of all sandboxes but those on members that are away."""
        found = [one for one in await self._instances.all() if is_sandbox(one) and one["status"] != "Error"]
        return await asyncio.gather(*(self._report(one) for one in found))

    async def adopt(self) -> None:
        """Have routes to what runs, and no others."""
        await self._routes.sync(dict(await self._addresses()))

    async def adopt_on(self, members: Collection[str]) -> None:
        """Route to what runs on members that returned, while apps start and end."""
        for ip, member in await self._addresses():
            if member in members:
                # No route is removed: the list may be older than an app that has started.
                await self._routes.add(ip, member)

    async def _addresses(self) -> Sequence[tuple[str, str]]:
        """Return address and member of each sandbox."""
        found = [one for one in await self._instances.all() if is_sandbox(one)]
        return [(ip, one["location"]) for one in found if (ip := own_of(one).get("ip"))]

    # Changes

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        async with self._lock(sandbox):
            if (found := await self.running(sandbox)) and found["status"] != "Frozen":
                await self._instances.mark(found["name"], {"frozen": f"{time.time():.6f}"})
                await self._set_state(found["name"], "freeze")
        return await self.report(sandbox)

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        async with self._lock(sandbox):
            if (found := await self.running(sandbox)) and found["status"] == "Frozen":
                await self._set_state(found["name"], "unfreeze")
                await self._instances.mark(found["name"], {"thawed": f"{time.time():.6f}"})
        return await self.report(sandbox)

    def _lock(self, sandbox: SandboxId) -> asyncio.Lock:
        return self._locks.setdefault(name_of(sandbox), asyncio.Lock())

    async def _set_state(self, name: str, action: str) -> None:
        try:
            body = {"action": action, "timeout": _STATE_SECONDS}
            await self._client.call("PUT", f"/instances/{name}/state", body)
        except IncusError:
            # It may have ended meanwhile, which Incus tells by words alone, or have this state.
            found = await self._instances.find(name)
            if found and found["status"] not in _DONE[action]:
                raise

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        found = await self._find(sandbox)
        if found is None:
            return missing_report(sandbox)
        name = found["name"]
        if self._instances.is_away(found):
            await self._lost.end_later(found)
            return ended_report(found, EndCause.STOPPED)
        if not await self._has_order(found):
            await self._abandon(found)
            return missing_report(sandbox)
        # On a member that answers, Incus may fail to read the state of an instance, too.
        if found["status"] != "Error" and state_of(found) is SandboxState.EXITED:
            return await self._report(found)
        now = f"{time.time():.6f}"
        await self._instances.mark(name, {"stopping": now})
        if found["status"] == "Frozen":
            with suppress(IncusError):
                await self._set_state(name, "unfreeze")
        if grace_seconds > 0:
            body = {"action": "stop", "timeout": math.ceil(grace_seconds), "force": False}
            with suppress(IncusError):
                await self._client.call("PUT", f"/instances/{name}/state", body)
                return await self._report(
                    {**found, "status": "Stopped", "config": {**found["config"], f"{OWN}stopping": now}}
                )
        await self._instances.kill(name)
        return await self.report(sandbox)

    async def remove(self, sandbox: SandboxId) -> None:
        """Take the disk and the layer from an ended sandbox; its instance stays for its log."""
        found = await self._find(sandbox)
        if found is None:
            return
        if not await self._has_order(found):
            await self._abandon(found)
            return
        if _runs(found):
            raise InvalidState(f"The sandbox {sandbox} runs: stop it first.")
        await self._routes.remove(own_of(found).get("ip", ""))
        await self._instances.strip(found, {"removed": f"{time.time():.0f}", "ip": ""})

    async def release(self, disk: DiskId, users: Collection[str]) -> None:
        """Take a disk from ended sandboxes in these instances. Raises ``InvalidState`` while one runs."""
        await self.refuse_users(disk, users)
        for name in users:
            if name.startswith(PREFIX) and (found := await self._instances.find(name)):
                if not await self._has_order(found):
                    await self._abandon(found)
                    continue
                await self._report(found)
                if found := await self._instances.find(name):
                    await self._instances.strip(found, {})

    async def exits(self) -> AsyncIterator[SandboxId]:
        """Yield those that ended while nobody was connected, then each that ends until the connection is lost."""
        try:
            async with await self._client.open_websocket("/events", client.PROBE_SECONDS, type="lifecycle") as events:
                for sandbox in [
                    sandbox_of(found["name"])
                    for found in await self._instances.all()
                    if is_sandbox(found) and found["status"] == "Stopped" and "end" not in own_of(found)
                ]:
                    yield await self._ended(sandbox)
                async for message in events:
                    event = json.loads(message).get("metadata") or {}
                    name = str(event.get("source", "")).partition("?")[0].rpartition("/")[2]
                    if event.get("action") in _ENDED and name.startswith(PREFIX):
                        yield await self._ended(sandbox_of(name))
        except (BuilderdError, ConnectionClosed) as error:
            log.warning("event stream of Incus lost error=%s", error)

    async def _ended(self, sandbox: SandboxId) -> SandboxId:
        """Write its end down, also when nobody asks for it."""
        with suppress(EngineUnavailable):
            await self.report(sandbox)
        return sandbox

    @asynccontextmanager
    async def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AsyncIterator[Process]:
        found = await self.running(sandbox)
        if found is None:
            raise NotRunningError
        if found["status"] == "Frozen":
            await self.thaw(sandbox)
        name = found["name"]
        if self._open[name] >= MAX_OPEN:
            raise InvalidState(f"{MAX_OPEN} commands run in the builder already: wait until one of them has ended.")
        process = IncusProcess(self._client, name, spec)
        with counted(self._open, name):
            try:
                await process.begin()
                yield process
            finally:
                await asyncio.shield(process.end())


def _runs(found: Json) -> bool:
    return state_of(found) in (SandboxState.RUNNING, SandboxState.FROZEN)
