"""Parameters of a sandbox, its root file system, and the parts of the service that all work on sandboxes shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builderd.dependencies.model import APP, NODE_MODULES
from builderd.engine.oci.network.allocations import Slots
from builderd.engine.oci.network.host_files import CA_BUNDLE, CA_ENVIRONMENT, HOME
from builderd.engine.oci.network.network import Network
from builderd.engine.oci.runtime.cgroups import Cgroups
from builderd.engine.oci.runtime.launching import Launcher, Runtime
from builderd.engine.oci.runtime.records import Heartbeat, Records
from builderd.engine.oci.storage.base import APP_UID
from builderd.engine.oci.storage.disks import DISK_UID
from builderd.engine.oci.storage.layers import Bind
from builderd.engine.oci.storage.quotas import NO_SPACE, DiskSpace
from builderd.linux.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_NODEV, MS_NOSUID
from builderd.sandboxes.model import SandboxSpec

#: Owner of a layer's files on the host.
LAYER_OWNER = 0
_FLAGS = MS_NOSUID | MS_NODEV
#: Mount point of the scratch folder in a bundle.
SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Root:
    """Layers of a root. ``lowers``: topmost first. ``scratch`` contains ``upper`` and ``work``; None: read-only root.

    ``mirrors`` maps folders of the root, as the layers make it, to other places where they are seen too; the user may
    write beside the layers' files there.
    """

    lowers: tuple[Path, ...]
    binds: tuple[Bind, ...] = ()
    scratch: Path | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict)


def mount_points(root: Root, bundle: Path) -> list[Path]:
    """Return the bundle's folders that must exist before the mounts are made."""
    lowers = (_lower(bundle, index) for index in range(len(root.lowers)))
    return [bundle / "root", *lowers, *([bundle / SCRATCH] if root.scratch else ())]


def make_mounts(root: Root, bundle: Path, store: Path) -> list[dict[str, Any]]:
    """Return the launcher's mounts, in order; the root is then at ``<bundle>/root``.

    Paths of overlays are relative to the bundle, since the sandbox reads them in its ``/proc/self/mountinfo``.
    The store itself is unmounted inside, since an ending sandbox would keep the host from unmounting it.
    """
    below = [_bind(path, _lower(bundle, index), True, LAYER_OWNER) for index, path in enumerate(root.lowers)]
    if root.scratch:
        below.append(_bind(root.scratch, bundle / SCRATCH, False, None))
    inside = bundle / "root"
    binds = [_bind(one.source, _at(inside, one.target), one.read_only, one.owner) for one in root.binds]
    mirrors = [_bind(_at(inside, path), _at(inside, other), False, None) for path, other in root.mirrors.items()]
    return [*below, _overlay(root, bundle), *binds, *mirrors, {"kind": "detach", "target": str(store)}]


def _at(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _lower(bundle: Path, index: int) -> Path:
    return bundle / f"lower{index}"


def hide_source(bundle: Path, folder: str) -> dict[str, Any]:
    """Return the launcher's mount of a bundle's folder over itself: mountinfo inside names binds by paths in it.

    An overlay needs two layers: the second is the bundle's ``root``, which is empty until its own mount is made.
    """
    return {"kind": "overlay", "target": str(bundle / folder), "flags": _FLAGS, "data": f"lowerdir={folder}:root"}


def _overlay(root: Root, bundle: Path) -> dict[str, Any]:
    options = ["lowerdir=" + ":".join(_lower(bundle, index).name for index in range(len(root.lowers)))]
    if root.scratch:
        # Volatile: the overlay is discarded at the next start, so it need not be synced at the end of this one.
        options += [f"upperdir={SCRATCH}/upper", f"workdir={SCRATCH}/work", "volatile"]
    return {
        "kind": "overlay",
        "target": str(bundle / "root"),
        "flags": _FLAGS,
        "data": ",".join(options),
    }


def _bind(source: Path, target: Path | str, read_only: bool, owner: int | None) -> dict[str, Any]:
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0)
    return {"kind": "bind", "source": str(source), "target": str(target), "attributes": attributes, "owner": owner}


@dataclass(frozen=True, slots=True)
class Run:
    """Parameters of a sandbox. ``owner`` and ``disk`` are a builder's and empty for a build; ``user`` is the id inside.

    ``tmpfs`` maps paths inside to sizes in bytes, ``secret_files`` paths below ``/run/credentials`` to their text.
    ``capabilities`` and ``host_network`` are for trusted tools. ``tenant`` is whose NAT ports it takes.
    ``space`` is that of its disk at its start. ``label`` is that of a further process.
    """

    id: str
    runtime: Runtime
    root: Root
    hostname: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: int
    cpu: float
    memory_bytes: int
    pids: int
    egress: bool
    log: Path
    log_limit: int
    owner: str = ""
    disk: str = ""
    port: int = 0
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    secret_files: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    host_network: bool = False
    tenant: str = ""
    label: str = ""
    space: DiskSpace = NO_SPACE

    @property
    def is_app(self) -> bool:
        """True if code of a tenant runs in it under its own rules."""
        return bool(self.owner)

    @property
    def has_own_proc(self) -> bool:
        """True if files of the host's ``/proc`` are replaced. gVisor has a ``/proc`` of its own.

        Builds see the host's: Node.js would limit its heap to half of a build's memory.
        """
        return self.is_app and not self.runtime.is_gvisor


@dataclass(frozen=True, slots=True)
class RunContext:
    """Parts of the service that runs need.

    ``run_dir`` is searchable by all; ``store`` is a mount point. ``seccomp`` is the profile of apps, ``build_seccomp``
    that of builds and tools.
    """

    run_dir: Path
    store: Path
    seccomp: Mapping[str, Any]
    build_seccomp: Mapping[str, Any]
    records: Records
    launcher: Launcher
    cgroups: Cgroups
    network: Network
    slots: Slots
    runtimes: Mapping[str, Runtime]
    heartbeat: Heartbeat

    def bundle(self, name: str) -> Path:
        return self.run_dir / "sandboxes" / name


PIDS = 512
#: gVisor's own threads count against the limit as well.
GVISOR_PIDS = 200
#: Init (tini): forwards signals to all others and reaps zombies (as PID 1, most programs ignore SIGTERM).
INIT = ("/usr/bin/tini", "-g", "--")
#: The shell waits for its children: its own end would end the sandbox and cut off their last output.
WAIT = "trap 'exit 143' TERM\n"
#: A command that installs Node packages itself needs a folder of its own for them, as ``npm ci`` empties it first.
_INSTALLS = re.compile(r"\b(?:npm|pnpm|yarn|bun)\s+(?:ci|i|install|add|update)\b|\byarn\s*(?:$|[;&|])")
_PATH = f"{HOME}/.local/bin:/app/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games"


def make_run(
    spec: SandboxSpec, runtime: Runtime, root: Root, space: DiskSpace, log: Path, log_limit: int, builderd_url: str
) -> Run:
    """Return the run of an app; ``root`` as ``app_root`` makes it."""
    return Run(
        id=spec.id,
        owner=spec.builder_id,
        disk=spec.disk,
        label=spec.process,
        runtime=runtime,
        root=root,
        space=space,
        hostname=spec.hostname,
        port=spec.port,
        argv=[*INIT, "/bin/sh", "-c", WAIT + spec.entrypoint],
        env=app_env(spec, builderd_url),
        cwd="/app",
        user=APP_UID,
        cpu=spec.resources.cpu,
        memory_bytes=spec.resources.memory_bytes,
        pids=PIDS + (GVISOR_PIDS if runtime.is_gvisor else 0),
        egress=spec.egress,
        log=log,
        log_limit=log_limit,
        secret_files=spec.secret_files,
        # Where it reaches no network, there is nothing to share.
        tenant=spec.tenant_id if spec.egress else "",
        tmpfs={"/dev/shm": spec.resources.memory_bytes // 2},  # noqa: S108
    )


def app_root(
    lowers: tuple[Path, ...],
    scratch: Path,
    app: Path,
    home: Path,
    *,
    packages: str | None = None,
) -> Root:
    """Return the root: ``app`` and the user's ``home`` are persistent, all other writes go to ``scratch``.

    ``packages`` is the folder of ``/app`` in which the layer's Node packages are seen too, where frameworks look.
    """
    mirrors = {f"/{NODE_MODULES}": f"{APP}/{packages}"} if packages else {}
    folders = {APP: app, HOME: home}
    binds = tuple(Bind(folder, path, read_only=False, owner=DISK_UID) for path, folder in folders.items())
    return Root(lowers=lowers, scratch=scratch, binds=binds, mirrors=mirrors)


def brings_packages(entrypoint: str) -> bool:
    """Return True if the command installs Node packages into the app's folder by itself."""
    return _INSTALLS.search(entrypoint) is not None


def app_env(spec: SandboxSpec, builderd_url: str) -> Mapping[str, str]:
    """Return the environment: the spec overrides the defaults, except the platform's own address."""
    layer = (
        {"PATH": f"/venv/bin:/node_modules/.bin:{_PATH}", "VIRTUAL_ENV": "/venv"} if spec.layer_key else {"PATH": _PATH}
    )
    cpus = str(max(1, math.ceil(spec.resources.cpu)))
    return {
        **layer,
        "HOME": HOME,
        "LANG": "C.UTF-8",
        # Otherwise Python buffers its output, and the log lags behind.
        "PYTHONUNBUFFERED": "1",
        **CA_ENVIRONMENT,
        # By itself, Node.js takes 256 MB of any memory for its heap.
        "NODE_OPTIONS": f"--max-old-space-size={spec.resources.memory_bytes >> 21}",
        "REQUESTS_CA_BUNDLE": str(CA_BUNDLE),
        # The kernel tells programs the host's processors. nproc and libraries with OpenMP or BLAS read the first of
        # these, Python 3.13 the second, Go the third.
        **dict.fromkeys(("OMP_NUM_THREADS", "PYTHON_CPU_COUNT", "GOMAXPROCS"), cpus),
        **spec.env,
        "BUILDERD_URL": builderd_url,
    }
