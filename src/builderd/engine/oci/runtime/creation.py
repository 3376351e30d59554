"""Creation of a sandbox: its bundle, its secret files, and the shim that makes its first process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.network.host_files import write_own_files
from builderd.engine.oci.runtime import runtime_commands
from builderd.engine.oci.runtime.bundle import PROC_FOLDER, make_config
from builderd.engine.oci.runtime.launching import Ended, Program
from builderd.engine.oci.runtime.proc_files import write_first
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.run import Run, RunContext, hide_source, make_mounts, mount_points
from builderd.engine.oci.runtime.runtime_commands import SHIM_ENV, runtime_mounts
from builderd.engine.oci.storage.layers import Bind
from builderd.linux.atomic_files import write_json
from builderd.linux.processes import open_files
from builderd.linux.threads import read_line, run_to_completion
from builderd.sandboxes.model import SECRETS_FOLDER

_CREATE_SECONDS = 30.0


class Creation:
    """Creates sandboxes up to a first process that waits to execute the program."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def make_bundle(self, run: Run, record: Record, uid: int) -> Path:
        bundle = self._context.bundle(run.id)
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(mode=0o711)
        for folder in mount_points(run.root, bundle):
            folder.mkdir(mode=0o711)
        if run.root.scratch:
            for name in ("upper", "work"):
                os.chown(run.root.scratch / name, uid, uid)
            write_own_files(run.root.scratch / "upper", run.hostname, record.ip, uid)
            for path in run.root.mirrors:
                # The app may write beside the layer's files: tools keep their caches there.
                folder = run.root.scratch / "upper" / path.lstrip("/")
                folder.mkdir(mode=0o755)
                os.chown(folder, uid + run.user, uid + run.user)
            if run.secret_files:
                write_secret_files(bundle, run.secret_files, uid + run.user)
                make_secrets_target(run.root.scratch / "upper", uid)
        # Commands inside take user and environment from there.
        seccomp = self._context.seccomp if run.is_app else self._context.build_seccomp
        cgroup = self._context.cgroups.path(run.id)
        write_json(bundle / "config.json", make_config(run, bundle, cgroup, uid, seccomp, open_files()))
        if run.has_own_proc:
            write_first(bundle, run.cpu, run.memory_bytes, run.space)
        return bundle

    async def launch_shim(self, run: Run, record: Record, bundle: Path) -> int:
        """Run the shim; return the pid of the sandbox's first process."""
        kept = self._context.records.folder(run.id)
        argv = runtime_commands.shim(run.runtime, run.id, bundle, kept, self._context.records.exits)
        # Log rotation: conmon begins the file again at this size.
        argv += ["--log-path", f"k8s-file:{run.log}", "--log-size-max", str(run.log_limit)]
        # Creating a group waits while another process moves: not in the event loop.
        tasks = await run_to_completion(self._context.cgroups.open_shim, run.id)
        own = [PROC_FOLDER] * run.has_own_proc + [SECRETS] * bool(run.secret_files)
        mounts = [hide_source(bundle, folder) for folder in own]
        root = run.root
        if run.secret_files:  # read-only, with the owner that they have already
            secrets = Bind(bundle / SECRETS, SECRETS_FOLDER, read_only=True, owner=None)
            root = replace(root, binds=(*root.binds, secrets))
        mounts += make_mounts(root, bundle, self._context.store)
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            program = Program(
                argv,
                SHIM_ENV,
                cwd=str(bundle),  # the shim writes a second "oom" file here
                mounts=[*mounts, *runtime_mounts(run.runtime)],
                cgroups=[tasks],
                uid=self._context.slots.uid(record.slot),
            )
            ended = await self._context.launcher.run(program, {3: write})
            return first_process(ended, await read_line(read, _CREATE_SECONDS))
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{run.runtime.name} did not create the sandbox within {_CREATE_SECONDS:.0f} s."
            ) from error
        finally:
            os.close(read)


def first_process(ended: Ended, report: bytes) -> int:
    """Return the first process's pid from the shim's report. Raises ``EngineUnavailable`` when creation failed."""
    if ended.error:
        raise EngineUnavailable(f"The sandbox could not be created: {ended.error}.")
    if not report:
        raise EngineUnavailable(f"The sandbox's shim ended without a report (exit status {ended.status}).")
    answer = json.loads(report)
    if answer["data"] <= 0:
        raise EngineUnavailable(f"The sandbox could not be created: {str(answer.get('message', '')).strip()}")
    return int(answer["data"])


SECRETS = "credentials"


def write_secret_files(bundle: Path, files: Mapping[str, str], owner: int) -> None:
    """Write them into the bundle, which lies among the run-time files. ``owner`` is the host's id of the app's user.

    Raises ``ValueError`` for a path that leads elsewhere.
    """
    top = bundle / SECRETS
    top.mkdir(mode=0o700)
    for name, text in files.items():
        file = top / relative_secret(name)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as opened:
            opened.write(text)
    for made in (top, *top.rglob("*")):
        made.chmod(0o500 if made.is_dir() else 0o400)
        os.chown(made, owner, owner)


def make_secrets_target(upper: Path, uid: int) -> None:
    """Create their mount point in the upper layer of the sandbox's root."""
    for folder in (upper / "run", upper / SECRETS_FOLDER.lstrip("/")):
        folder.mkdir(mode=0o755)
        os.chown(folder, uid, uid)


def relative_secret(name: str) -> PurePosixPath:
    """Return the path below the folder; raise ``ValueError`` for one that is no ``<credential>/<variable>``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) != 2:
        raise ValueError(f"{name!r} is no <credential>/<variable>")
    return path
