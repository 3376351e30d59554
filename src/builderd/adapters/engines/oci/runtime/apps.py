"""Parameters of an app's sandbox: command line, environment, limits and layers. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from builderd.adapters.engines.oci.network.host_files import BYTECODE, CA_BUNDLE, HOME
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.runtime.run import Run
from builderd.adapters.engines.oci.storage.base_recipe import APP_UID
from builderd.adapters.engines.oci.storage.builds import Bind
from builderd.adapters.engines.oci.storage.disks import DISK_UID
from builderd.adapters.engines.oci.storage.quotas import DiskSpace
from builderd.domain.layers import APP, NODE_MODULES
from builderd.domain.sandboxes import SandboxSpec

PIDS = 512
#: gVisor's own threads count against the limit as well.
GVISOR_PIDS = 200
#: Init (tini): forwards signals to all others and reaps zombies (as PID 1, most programs ignore SIGTERM).
INIT = ("/usr/bin/tini", "-g", "--")
#: The shell waits for its children: its own end would end the sandbox and cut off their last output.
WAIT = "trap 'exit 143' TERM\n"
#: A command that installs Node packages itself needs a folder of its own for them, as ``npm ci`` empties it first.
_INSTALLS = re.compile(r"\b(?:npm|pnpm|yarn|bun)\s+(?:ci|i|install|add|update)\b|\byarn\s*(?:$|[;&|])")
_PATH = f"{HOME}/.local/bin:/app/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_run(
    spec: SandboxSpec, runtime: Runtime, root: Root, space: DiskSpace, log: Path, log_limit: int, builderd_url: str
) -> Run:
    """Return the run of an app; ``root`` as ``app_root`` makes it."""
    return Run(
        id=spec.id,
        owner=spec.builder_id,
        disk=spec.disk,
        runtime=runtime,
        root=root,
        space=space,
        hostname=spec.hostname,
        port=spec.port,
        argv=[*INIT, "/bin/sh", "-c", WAIT + spec.entrypoint],
        env=app_env(spec, builderd_url, caches_bytecode=BYTECODE in root.writable),
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
    lacks_bytecode: bool = False,
) -> Root:
    """Return the root: ``app`` and the user's ``home`` are persistent, all other writes go to ``scratch``.

    ``packages`` is the folder of ``/app`` in which the layer's Node packages are seen too, where frameworks look.
    ``lacks_bytecode``: Python keeps in the scratch what it compiles, since it cannot write into the layer.
    """
    mirrors = {f"/{NODE_MODULES}": f"{APP}/{packages}"} if packages else {}
    folders = {APP: app, HOME: home}
    binds = tuple(Bind(folder, path, read_only=False, owner=DISK_UID) for path, folder in folders.items())
    writable = (BYTECODE,) if lacks_bytecode else ()
    return Root(lowers=lowers, scratch=scratch, binds=binds, mirrors=mirrors, writable=writable)


def brings_packages(entrypoint: str) -> bool:
    """Return True if the command installs Node packages into the app's folder by itself."""
    return _INSTALLS.search(entrypoint) is not None


def app_env(spec: SandboxSpec, builderd_url: str, *, caches_bytecode: bool = False) -> Mapping[str, str]:
    """Return the environment: the spec overrides the defaults, except the platform's own address."""
    layer = (
        {"PATH": f"/venv/bin:/node_modules/.bin:{_PATH}", "VIRTUAL_ENV": "/venv"} if spec.layer_key else {"PATH": _PATH}
    )
    return {
        **layer,
        "HOME": HOME,
        "LANG": "C.UTF-8",
        # Otherwise Python buffers its output, and the log lags behind.
        "PYTHONUNBUFFERED": "1",
        # Programs with a certificate bundle of their own use the host's too.
        "SSL_CERT_FILE": str(CA_BUNDLE),
        "REQUESTS_CA_BUNDLE": str(CA_BUNDLE),
        **cpu_env(spec.resources.cpu),
        **({"PYTHONPYCACHEPREFIX": BYTECODE} if caches_bytecode else {}),
        **spec.env,
        "BUILDERD_URL": builderd_url,
    }


def cpu_env(cpu: float) -> Mapping[str, str]:
    """Return the variables by which programs learn the number of processors: the kernel tells them the host's.

    nproc and libraries with OpenMP or BLAS read the first, Python 3.13 the second, Go the third.
    """
    return dict.fromkeys(("OMP_NUM_THREADS", "PYTHON_CPU_COUNT", "GOMAXPROCS"), str(max(1, math.ceil(cpu))))
