"""The OCI bundle of a sandbox: its ``config.json``. Pure.

Format: github.com/opencontainers/runtime-spec, version 1.0.2. One writer for crun, runc and runsc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builderd.engine.oci.network.host_files import DISK_LIMITS
from builderd.engine.oci.runtime.run import Run

#: Ids of a sandbox's own user namespace.
IDS = 65536
CPU_PERIOD = 100_000
#: The kernel kills sandboxes before the host's own processes when the machine runs out of memory.
OOM_SCORE = 500

#: A sandbox's standard streams belong to the shim, so that it needs no terminal and gets none.
_MOUNTS = (
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        # The kernel counts those of all sandboxes together.
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=256"],
    },
)
#: Files that describe the host: its boot parameters, devices, disks, memory map, symbols, and other tenants' locks.
#: Not masked are those that free, top, nproc, node and the JVM read: ``OWN_PROC``, loadavg, uptime, vmstat.
MASKED = tuple(
    f"/proc/{name}"
    for name in (
        *("acpi", "asound", "buddyinfo", "bus", "cmdline", "config.gz", "consoles", "devices", "diskstats", "driver"),
        *("dma", "fs", "interrupts", "iomem", "ioports", "irq", "kallsyms", "kcore", "key-users", "keys"),
        *("latency_stats", "locks", "misc", "modules", "mtrr", "partitions", "sched_debug", "schedstat", "scsi"),
        *("slabinfo", "softirqs", "swaps", "timer_list", "timer_stats", "tty", "vmallocinfo", "zoneinfo"),
    )
)
#: Files of ``/proc`` that a sandbox has of its own (``proc_files``), and their folder in the bundle.
OWN_PROC, PROC_FOLDER = ("cpuinfo", "meminfo", "stat"), "proc"
#: File in that folder with the limits of its disk.
DISK_FILE = "disk"
_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")


def make_config(
    run: Run, bundle: Path, cgroup: str, uid: int, seccomp: Mapping[str, Any], open_files: int
) -> dict[str, Any]:
    """Return the ``config.json``. ``uid`` is the host's id for the sandbox's 0.

    ``open_files`` may not be above the service's own hard limit.
    """
    root, proc = bundle / "root", bundle / PROC_FOLDER
    # gVisor caches the root itself: folders that the host changes meanwhile are mounts of their own.
    shared = [bind.target for bind in run.root.binds if not bind.read_only] if run.runtime.is_gvisor else []
    own_files = {f"/proc/{name}": name for name in OWN_PROC} | {DISK_LIMITS: DISK_FILE} if run.has_own_proc else {}
    return {
        "process": make_process(run.argv, run.env, run.user, open_files, cwd=run.cwd, capabilities=run.capabilities),
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": run.root.scratch is None},
        "hostname": run.hostname,
        "mounts": [
            *_MOUNTS,
            *(_tmpfs(path, size) for path, size in run.tmpfs.items()),
            *(_shared(str(root), path) for path in shared),
            *(_own_file(f"{proc}/{name}", target) for target, name in own_files.items()),
        ],
        "linux": _linux(run, cgroup, uid, seccomp),
    }


def make_process(
    argv: Sequence[str],
    env: Mapping[str, str],
    user: int,
    open_files: int,
    *,
    cwd: str = "/",
    terminal: bool = False,
    capabilities: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the ``process`` document: without any capability but those given, and with no way to gain one.

    ``user`` is the id inside.
    """
    return {
        "terminal": terminal,
        "user": {"uid": user, "gid": user},
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": cwd,
        "capabilities": {
            kind: list(capabilities) for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
        },
        "noNewPrivileges": True,
        "oomScoreAdj": OOM_SCORE,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files},
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        ],
    }


def _tmpfs(path: str, size: int) -> dict[str, Any]:
    options = ["nosuid", "nodev", "mode=1777", f"size={size}"]
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}


def _shared(root: str, path: str) -> dict[str, Any]:
    """Return a separate mount for a folder of the root: gVisor revalidates its files at each access."""
    return {"destination": path, "type": "bind", "source": root + path, "options": ["rbind", "rw", "nosuid", "nodev"]}


def _own_file(source: str, target: str) -> dict[str, Any]:
    options = ["bind", "ro", "nosuid", "nodev", "noexec"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _linux(run: Run, cgroup: str, uid: int, seccomp: Mapping[str, Any]) -> dict[str, Any]:
    ids = [{"containerID": 0, "hostID": uid, "size": IDS}]
    own = ("pid", "ipc", "uts", "mount", "user", "cgroup", *(() if run.host_network else ("network",)))
    return {
        "namespaces": [{"type": kind} for kind in own],
        "uidMappings": ids,
        "gidMappings": ids,
        "cgroupsPath": cgroup,
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "cpu": {"quota": int(run.cpu * CPU_PERIOD), "period": CPU_PERIOD, "shares": int(run.cpu * 1024)},
            "memory": {"limit": run.memory_bytes, "swap": run.memory_bytes},
            "pids": {"limit": run.pids},
        },
        "seccomp": dict(seccomp),
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
