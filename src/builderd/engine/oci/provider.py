"""The engine for one machine as a kind of engine, the inventory of its store, and its preflight checks."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path

from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.inventory import EngineInventory, PreflightCheck, StoredBase, StoredDisk, StoredLayer
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.engine.machine import find_program, mounted_store
from builderd.engine.oci.network.allocations import sandbox_networks
from builderd.engine.oci.network.network import COUNTING
from builderd.engine.oci.runtime.cgroups import Cgroups
from builderd.engine.oci.runtime.host_limits import (
    SOCKET_POOLS,
    least_socket_pool,
    socket_pool,
    total_memory,
)
from builderd.engine.oci.runtime.runs import swaps_to_zram
from builderd.engine.oci.runtime.seccomp import PROFILE
from builderd.engine.oci.storage.backing import image_of, mounted_roots
from builderd.engine.oci.storage.base import HOST_HOME, ensure_base, find_host_base
from builderd.engine.oci.storage.quotas import Quota
from builderd.engine.oci.storage.space_reservations import StorageDevice, find_failure
from builderd.engine.oci.storage.subvolumes import is_subvolume
from builderd.engine.port import EngineOptions, Progress


class OciProvider:
    def make(self, options: EngineOptions) -> OciEngine:
        return OciEngine(options)

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        return run_checks(data_dir, floor_bytes)

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        return read_inventory(data_dir)

    def build_base(self, progress: Progress, index: str | None) -> str:
        return ensure_base(progress, index=index).id

    def find_base(self) -> Path | None:
        base = find_host_base()
        return base.root if base else None

    def networks(self) -> Sequence[IPv4Network]:
        return sandbox_networks()


def read_inventory(data_dir: Path) -> EngineInventory | None:
    """Return the inventory; None when the store is not mounted: no service ran since the machine booted. Needs root."""
    root = mounted_store(data_dir)
    return inventory_of(root, HOST_HOME) if root else None


def inventory_of(root: Path, host_home: Path) -> EngineInventory:
    """Return the inventory of the store mounted at ``root`` and of the host's bases."""
    quota, mounted = Quota(root), mounted_roots()
    scratch = [_used(quota, path) for path in _subvolumes(root / "scratch")]
    return EngineInventory(
        layers=[_layer(quota, path, mounted) for path in _folders(root / "layers") if not path.name.startswith(".")],
        disks=[_disk(quota, path) for path in _subvolumes(root / "disks") if not path.name.startswith(".")],
        bases=list(_bases(host_home / "bases", mounted)),
        cache_bytes=_used(quota, root / "cache") if (root / "cache").exists() else 0,
        scratch_bytes=sum(scratch),
        scratch=len(scratch),
    )


def _layer(quota: Quota, path: Path, mounted: frozenset[str]) -> StoredLayer:
    seen = any(f"/layers/{path.name}/" in root for root in mounted)
    used = sum(_used(quota, generation) for generation in _subvolumes(path))
    return StoredLayer(path.name, used, _asked_at(path), seen)


def _disk(quota: Quota, path: Path) -> StoredDisk:
    group = quota.group(path)
    return StoredDisk(DiskId(path.name), quota.used(group), quota.limit_of(group))


def _bases(bases: Path, mounted: frozenset[str]) -> Iterator[StoredBase]:
    own = find_host_base()
    for path in _folders(bases):
        if not path.name.startswith("."):
            seen = any(f"/{path.name}/root" in root for root in mounted)
            yield StoredBase(
                path.name, _size(path), _asked_at(path), seen, own is not None and own.root == path / "root"
            )


def _used(quota: Quota, path: Path) -> int:
    return quota.used(quota.group(path))


def _asked_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _subvolumes(folder: Path) -> list[Path]:
    return [path for path in _folders(folder) if is_subvolume(path)]


def _size(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk; hard links are counted once."""
    seen: set[int] = set()
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = (Path(parent) / name).lstat()
                total += 0 if status.st_ino in seen else status.st_blocks * 512
                seen.add(status.st_ino)
    return total


#: (program, Debian package, consequence of its lack, vital)
PROGRAMS = (
    ("conmon", "conmon", "no sandbox can be started", True),
    ("nft", "nftables", "sandboxes could reach this machine's own network, so none is started", True),
    ("mkfs.btrfs", "btrfs-progs", "there is nowhere to keep disks", True),
    ("mmdebstrap", "mmdebstrap", "the base root file system cannot be made", True),
    ("runc", "runc", "none where crun is there; it starts sandboxes some 30 ms slower", False),
    ("restic", "restic", "apps have no backups", False),
    ("runsc", "runsc", '"isolation": "strong" is refused', False),
)
#: The kernel that first had simple quotas on btrfs.
SIMPLE_QUOTAS = (6, 7)


def run_checks(data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
    """Run all checks. ``data_dir`` need not exist yet; ``floor_bytes`` is its store's floor."""
    found = find_program("crun") or find_program("runc")
    detail = _version(found) if found else "neither crun nor runc"
    roots = list(Path("/var/lib/builderd-host/bases").glob("[!.]*/root"))
    has_profile = Path(PROFILE).is_file()
    profile_cost = "no sandbox can be started: apt-get install golang-github-containers-common"
    base_cost = "it is made at the first start (half a minute)"
    return [
        PreflightCheck("runtime", bool(found), detail, "no sandbox can be started: apt-get install crun", True),
        *(_program(*row) for row in PROGRAMS),
        *_kernel(),
        PreflightCheck("seccomp profile", has_profile, PROFILE if has_profile else "missing", profile_cost, True),
        PreflightCheck(
            "base root file system", bool(roots), str(roots[0]) if roots else "not made yet", base_cost, False
        ),
        *_store(data_dir.absolute(), floor_bytes),
    ]


def _program(name: str, package: str, cost: str, vital: bool) -> PreflightCheck:
    path = find_program(name)
    detail = _version(path) if path else "not installed"
    return PreflightCheck(name, path is not None, detail, f"{cost}: apt-get install {package}", vital)


def _version(program: str) -> str:
    """Return the first line of the version text that has a digit, else the program's path."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return f"{program} (no version within 10 s)"
    except OSError:
        return f"{program} does not run"
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d", line)), program)


def _kernel() -> Sequence[PreflightCheck]:
    release = platform.release()
    major, minor = (int(part) for part in re.findall(r"\d+", release)[:2])
    quotas = (major, minor) >= SIMPLE_QUOTAS
    unified = Path("/sys/fs/cgroup/cgroup.controllers").is_file()
    hybrid = Path("/sys/fs/cgroup/memory").is_dir()
    btrfs = "btrfs" in Path("/proc/filesystems").read_text() or _module("btrfs", release)
    return [
        PreflightCheck("control groups", unified or hybrid, "version 2" if unified else "version 1", "no limits", True),
        PreflightCheck("btrfs in the kernel", btrfs, f"kernel {release}", "there is nowhere to keep disks", True),
        PreflightCheck("simple quotas", quotas, f"kernel {release}", "disks have no limits (Linux 6.7)", True),
        _zram(),
        _connection_limit(),
        _socket_buffers(),
    ]


def _connection_limit() -> PreflightCheck:
    """Check that nftables can count connections, with a table that is only parsed (``nft --check``)."""
    cost = "one sandbox can use up the connections of all (CONFIG_NFT_CONNLIMIT)"
    command = [find_program("nft") or "nft", "--check", "-f", "-"]
    try:
        done = subprocess.run(command, input=COUNTING, capture_output=True, text=True, check=False)
    except OSError:
        return PreflightCheck("limit of connections", False, "nft does not run", cost, False)
    detail = "the kernel counts them" if done.returncode == 0 else done.stderr.partition("\n")[0]
    if done.returncode and os.geteuid() != 0:
        detail = "only root may ask the kernel"
    return PreflightCheck("limit of connections", done.returncode == 0, detail, cost, False)


def _socket_buffers() -> PreflightCheck:
    """Check that control groups limit socket buffers, and that the host's pools are large enough for all sandboxes."""
    if not Cgroups("probe").counts_sockets:
        detail = "not limited by control groups: use version 2, or a kernel with memory.kmem.tcp"
        return PreflightCheck("socket buffers", False, detail, "one sandbox can use up those of all", False)
    pools = {name: socket_pool(name) for name in SOCKET_POOLS}
    least = least_socket_pool(total_memory())
    detail = ", ".join(f"{name.rpartition('/')[2]} {size / GB:.1f} GB" for name, size in pools.items())
    cost = f"sandboxes together can use up those of all: serve raises them to {least / GB:.1f} GB"
    return PreflightCheck("socket buffers", min(pools.values()) >= least, detail, cost, False)


def _zram() -> PreflightCheck:
    """Check that the machine swaps to zram: only then is the memory of frozen apps compressed."""
    found = swaps_to_zram()
    there = Path("/sys/class/zram-control").is_dir() or Path("/sys/block/zram0").is_dir()
    detail = "the machine swaps to it" if found else "the kernel has it, unused" if there else "none"
    return PreflightCheck("zram", found, detail, "frozen apps stay in plain memory: see docs/idle.md", False)


def _module(name: str, release: str) -> bool:
    """Return True when the kernel could load this module."""
    index = Path("/lib/modules") / release / "modules.dep"
    return index.is_file() and f"/{name}.ko" in index.read_text()


def _store(data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
    """Check the mounted store; nothing when it is not mounted, or only root may read it."""
    if (root := mounted_store(data_dir)) is None:
        return []
    image = image_of(data_dir)
    try:
        return check_store(StorageDevice(root, image if image.exists() else None, floor_bytes))
    except PermissionError:
        return []


def check_store(device: StorageDevice) -> Sequence[PreflightCheck]:
    """Check a mounted store: apps can write to it, and its metadata has one copy."""
    failure_reason, copies = find_failure(device), device.metadata_ratio()
    detail = f"{device.writable() / GB:.1f} GB can be written at {device.root}"
    cost = (
        "a byte of disk is promised only once for each copy, since apps may write nothing but metadata. Keep one copy: "
        f"btrfs balance start -f -mconvert=single {device.root}"
    )
    return [
        PreflightCheck("store", failure_reason is None, detail, failure_reason or "", False),
        PreflightCheck("metadata of the store", copies <= 1, f"takes {copies:g} times as much as data", cost, False),
    ]
