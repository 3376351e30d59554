"""How an app is run: the command line, the environment, the limits and the layers of one sandbox. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builderd.adapters.engines.oci.network.host_files import CA_BUNDLE
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.runtime.runs import Run
from builderd.adapters.engines.oci.storage.base_recipe import APP_UID
from builderd.adapters.engines.oci.storage.builds import Bind
from builderd.adapters.engines.oci.storage.disks import DISK_UID
from builderd.domain.sandboxes import SandboxSpec

PIDS = 512
#: gVisor's own threads count as well.
GVISOR_PIDS = 200
#: The first process: hands on signals to all others and takes their zombies (as PID 1, most programs ignore SIGTERM).
INIT = ("/usr/bin/tini", "-g", "--")
#: The shell stays until what it started has ended: its own end would end the sandbox, and cut off who still writes.
WAIT = "trap 'exit 143' TERM\n"
_PATH = "/app/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_run(spec: SandboxSpec, runtime: Runtime, root: Root, log: Path, log_limit: int, builderd_url: str) -> Run:
    """``root`` as ``app_root`` makes it."""
    return Run(
        id=spec.id,
        owner=spec.builder_id,
        disk=spec.disk,
        runtime=runtime,
        root=root,
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
        tmpfs={"/dev/shm": spec.resources.memory_bytes // 2},  # noqa: S108
    )


def app_root(lowers: tuple[Path, ...], scratch: Path, app: Path) -> Root:
    """``app`` is what persists; everything else that the app writes goes to ``scratch``."""
    return Root(lowers=lowers, scratch=scratch, binds=(Bind(app, "/app", read_only=False, owner=DISK_UID),))


def app_env(spec: SandboxSpec, builderd_url: str) -> Mapping[str, str]:
    """What the spec says goes before what every app gets, but for the platform's own address."""
    layer = (
        {"PATH": f"/venv/bin:/node_modules/.bin:{_PATH}", "VIRTUAL_ENV": "/venv"} if spec.layer_key else {"PATH": _PATH}
    )
    return {
        **layer,
        "HOME": "/app",
        "LANG": "C.UTF-8",
        # Without it, what Python prints stays in a buffer, and the log is behind what happened.
        "PYTHONUNBUFFERED": "1",
        # Programs that bring their own authorities use the host's all the same.
        "SSL_CERT_FILE": str(CA_BUNDLE),
        "REQUESTS_CA_BUNDLE": str(CA_BUNDLE),
        **spec.env,
        "BUILDERD_URL": builderd_url,
    }
