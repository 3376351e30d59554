"""Resources of one service on this machine, wired together: uids and subnet, store, network, sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from uv import find_uv_bin

from builderd.core.errors import EngineUnavailable
from builderd.core.resources import GB, Capacity, MachineUse
from builderd.engine.inventory import SEARCH_PATH
from builderd.engine.oci.network import allocations
from builderd.engine.oci.network.allocations import Addresses, Allocation, Allocations, Slots, parse_routes
from builderd.engine.oci.network.host_files import FOLDER, write_host_files
from builderd.engine.oci.network.network import Egress, Network
from builderd.engine.oci.runtime.cgroups import Cgroups
from builderd.engine.oci.runtime.creation import ProcFiles
from builderd.engine.oci.runtime.execute import end_left_over
from builderd.engine.oci.runtime.host_limits import raise_host_limits, raise_socket_pools, total_memory
from builderd.engine.oci.runtime.launching import CONMON, Launcher, Runtime
from builderd.engine.oci.runtime.listening import ListeningPorts
from builderd.engine.oci.runtime.logs import Logs
from builderd.engine.oci.runtime.records import Heartbeat, Records
from builderd.engine.oci.runtime.run import RunContext
from builderd.engine.oci.runtime.runner import Runner, Tools
from builderd.engine.oci.runtime.runs import Runs
from builderd.engine.oci.runtime.seccomp import PROFILE, make_seccomp
from builderd.engine.oci.storage import space_reservations as space
from builderd.engine.oci.storage.backing import free_bytes, image_of, is_mounted, total_bytes
from builderd.engine.oci.storage.base import Base, ensure_base
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.files import Files
from builderd.engine.oci.storage.layers import MAX_CACHE, SHARE, Layers
from builderd.engine.oci.storage.quotas import Quota
from builderd.engine.oci.storage.store import Store
from builderd.engine.oci.storage.subvolumes import is_subvolume
from builderd.engine.port import EngineOptions, Progress, StoreOptions
from builderd.linux.processes import boot_id
from builderd.linux.threads import run_to_completion

RUN_DIR = Path("/run/builderd")


class Machine:
    """Resources of one service. ``base``, ``layers`` and ``tools`` exist once it is open. Needs root."""

    base: Base
    layers: Layers
    tools: Tools

    def __init__(self, settings: EngineOptions) -> None:
        if os.geteuid():
            raise EngineUnavailable(
                "Sandboxes need root, for namespaces, mounts and the firewall: run builderd as root."
            )
        self.settings = settings
        self.allocations = Allocations()
        self.allocation = self._claim()
        self.run_dir = RUN_DIR / self.allocation.id
        self.addresses = Addresses(self.allocation.network)
        self.runtimes = find_runtimes(self.run_dir / "state")
        self.store = Store(settings.data_dir, self.run_dir / "store", settings.store, self.allocation.id)
        self.disks = Disks(self.store)
        self.files = Files(self.disks)
        self.launcher = Launcher()
        self.cgroups = Cgroups(self.allocation.id)
        egress = Egress(settings.inside_port, settings.allow, settings.deny)
        self.network = Network(self.allocation.id, self.addresses, egress)
        context = RunContext(
            run_dir=self.run_dir,
            store=self.store.root,
            seccomp=seccomp(),
            build_seccomp=seccomp(clones=True),
            records=Records(settings.data_dir, settings.now, settings.at),
            launcher=self.launcher,
            cgroups=self.cgroups,
            network=self.network,
            slots=Slots(self.allocation.blocks, self._grow),
            runtimes=self.runtimes,
            heartbeat=Heartbeat(settings.data_dir / "heartbeat", boot_id(), settings.now),
        )
        self.runs = Runs(context)
        self.logs = Logs(settings.data_dir / "logs", self.runs.runs_now)
        self.listening_ports = ListeningPorts(self.runs)
        self.proc_files = ProcFiles(self.cgroups, context.bundle, self.runs.all, self.disks.space_if_there)

    def _claim(self) -> Allocation:
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        routes = parse_routes(Path("/proc/net/route").read_text())
        return self.allocations.claim(self.settings.data_dir, routes)

    def _grow(self) -> tuple[int, ...]:
        self.allocation = self.allocations.grow(self.allocation)
        return self.allocation.blocks

    def lowers(self, layer: Path | None = None) -> tuple[Path, ...]:
        """Return the lower layers of a sandbox's root, the topmost first: the host's files, the layer, the base."""
        return (self._host_files, *(() if layer is None else (layer,)), self.base.root)

    @property
    def _host_files(self) -> Path:
        return self.store.root / FOLDER

    async def open(self, progress: Progress) -> None:
        """Create what is missing; may take a minute. Raises ``EngineUnavailable`` or ``NoCapacity``.

        When it fails or is cancelled, ``close`` releases what was opened by then.
        """
        await run_to_completion(self._make, progress)
        await self.runs.open()
        self.proc_files.start()
        await asyncio.gather(*(end_left_over(self.runs, record) for record in self.runs.all()))
        runner = Runner(self.runs, self.runtimes["standard"], self.lowers())
        self.layers = Layers(self.store, runner, {"/usr/local/bin/uv": Path(find_uv_bin())}, base_id=self.base.id)
        await run_to_completion(self.layers.open)
        self.tools = Tools(
            runner,
            self.runtimes["standard"],
            self.lowers(),
            self.store.root / "tools",
            self.disks,
            self.runs.refuse_while_used,
        )
        await run_to_completion(self.tools.open)
        self.store.start_watch()

    def _make(self, progress: Progress) -> None:
        if "standard" not in self.runtimes:
            raise EngineUnavailable("Neither crun nor runc is installed: apt-get install crun.")
        for program, package in ((CONMON, "conmon"), ("nft", "nftables"), ("mkfs.btrfs", "btrfs-progs")):
            if not find_program(program):
                raise EngineUnavailable(f"{program} is not installed: apt-get install {package}.")
        for folder in (RUN_DIR, self.run_dir, self.run_dir / "state"):
            folder.mkdir(mode=0o711, exist_ok=True)
        progress("opening the store")
        self.store.open(progress)
        self.disks.open()
        self.base = ensure_base(progress, index=self.settings.package_index)
        write_host_files(self._host_files, self.base.root, [Path(find_uv_bin())])
        raise_host_limits()
        if self.cgroups.counts_sockets:
            raise_socket_pools(total_memory())
        progress("opening the network")
        self.network.open()
        self.cgroups.open()

    def close(self) -> None:
        """Release everything for another service; sandboxes continue running. Idempotent."""
        self.proc_files.close()
        self.runs.close()
        self.launcher.close()
        self.files.close()
        self.disks.close()
        self.store.release()

    def give_back(self) -> None:
        """Remove groups, network, store and allocation from the host once no sandbox runs. Blocks. Idempotent."""
        self.cgroups.close()
        self.network.close()
        self.store.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.allocations.release(self.allocation.id)


def find_runtimes(state: Path) -> dict[str, Runtime]:
    """Return the installed runtimes by name, and by the isolation that uses them: ``standard``, ``strong``."""
    found = {
        name: Runtime(name, path, state / name) for name in ("crun", "runc", "runsc") if (path := find_program(name))
    }
    standard, strong = found.get("crun") or found.get("runc"), found.get("runsc")
    uses = {"standard": standard, "strong": strong}
    return found | {isolation: runtime for isolation, runtime in uses.items() if runtime}


def find_program(name: str) -> str | None:
    return shutil.which(name, path=SEARCH_PATH)


def seccomp(*, clones: bool = False) -> Mapping[str, object]:
    """Return the seccomp profile of sandboxes. Raises ``EngineUnavailable`` when the containers' profile is missing."""
    try:
        return make_seccomp(json.loads(Path(PROFILE).read_text()), platform.machine(), clones=clones)
    except FileNotFoundError as error:
        raise EngineUnavailable(f"{PROFILE} is missing: install golang-github-containers-common.") from error


def mounted_store(data_dir: Path) -> Path | None:
    """Return the mount point of the store of this data directory, None while it is not mounted."""
    instance = allocations.known_instance(data_dir)
    root = RUN_DIR / instance.id / "store" if instance else None
    return root if root is not None and is_mounted(root) else None


def measure(data_dir: Path, store: StoreOptions) -> MachineUse:
    """Measure this machine with the mounted store, or with the one that the next start would make or mount."""
    image = image_of(data_dir)
    own_bytes = image.stat().st_blocks * 512 if image.exists() else 0
    if (root := mounted_store(data_dir)) is not None:
        quota, device = Quota(root), space.StorageDevice(root, image if own_bytes else None, store.floor_bytes)
        reservations = space.SpaceReservations(device, quota, store.overcommit)
        for path in filter(is_subvolume, (root / "cache", *(root / "disks").iterdir())):
            more = 0 if path.name == "cache" else space.SCRATCH_BYTES
            reservations.adopt(path.name, quota.limit_of(group := quota.group(path)) + more, group)
            if is_subvolume(scratch := root / "scratch" / path.name):
                reservations.count_scratch(path.name, quota.group(scratch))
        promised, disks = reservations.capacity(), reservations.disks_left()
    else:
        root = next(folder for folder in (data_dir, *data_dir.parents) if folder.is_dir())
        free = max(0, free_bytes(root) + own_bytes - store.floor_bytes)
        promised = int(min(free, store.size_bytes or free) * (1 - space.RESERVE_SHARE) * store.overcommit)
        disks = space.disks_in(promised - min(MAX_CACHE, SHARE * promised / store.overcommit))
    total, memory = total_bytes(root) / GB, total_memory() / GB
    line = next(one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable"))
    used = os.getloadavg()[0], memory - int(line.split()[1]) / (1 << 20), total - free_bytes(root) / GB
    return MachineUse(Capacity(float(os.cpu_count() or 1), memory, promised / GB), *used, total, disks)
