"""Claim of a prepared sandbox: its disk, environment, secrets, name and limits, given while nothing runs in it yet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci.network.host_files import make_hosts
from builderd.adapters.engines.oci.runtime import secret_files
from builderd.adapters.engines.oci.runtime.apps import START_SCRIPT, start_script
from builderd.adapters.engines.oci.runtime.creation import Creation
from builderd.adapters.engines.oci.runtime.proc_files import write_first
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.root import hide_source, make_bind
from builderd.adapters.engines.oci.runtime.run import Run, RunContext
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.domain.errors import EngineUnavailable
from builderd.linux.processes import is_alive
from builderd.linux.threads import completed, run_to_completion


class Claims:
    """Prepares sandboxes and lets runs claim them."""

    def __init__(self, context: RunContext, runs: Runs) -> None:
        self._context = context
        self._runs = runs
        self._creation = Creation(context)

    async def prepare(self, run: Run) -> Record:
        """Create a sandbox without an owner. Raises ``EngineUnavailable`` on failure and leaves nothing."""
        record = self._runs.begin(run)
        try:
            run.log.parent.mkdir(mode=0o700)
            run.log.touch(mode=0o600)
            with self._context.cgroups.moves.expected():
                return await self._runs.create(run, record)
        except BaseException:
            await asyncio.shield(self._runs.remove(self._runs.find(run.id) or record))
            raise

    async def claim(self, run: Run, record: Record) -> Record:
        """Start the run in a prepared sandbox of its id. Raises ``EngineUnavailable`` on failure and leaves nothing."""
        try:
            record = await self._give(run, record)
            return await self._runs.release(run, record)
        except BaseException:
            await asyncio.shield(self._runs.remove(self._runs.find(run.id) or record))
            raise

    async def _give(self, run: Run, record: Record) -> Record:
        """Give it everything of the run; from its new record on, the next service keeps it."""
        process = record.process
        if process is None or not is_alive(process) or not is_alive(record.shim):
            raise EngineUnavailable("The prepared sandbox has ended.")
        uid, bundle = self._context.slots.uid(record.slot), self._context.config.bundle(run.id)
        claimed = replace(record, owner=run.owner, disk=run.disk, port=run.port, tenant=run.tenant)
        await run_to_completion(_write_files, run, claimed, bundle, uid)
        async with completed(run_to_completion(self._set_up, run, bundle, uid)):
            await asyncio.gather(
                self._context.launcher.claim(process.pid, uid, make_claim(run, bundle, uid)),
                self._runs.share_ports([claimed]),
            )
        return self._runs.save(claimed)

    def _set_up(self, run: Run, bundle: Path, uid: int) -> None:
        """Write what the host reads of the run, and raise the limits: all of it beside the launcher's work."""
        self._creation.write_config(run, bundle, uid)
        write_first(bundle, run.cpu, run.memory_bytes, run.space)
        self._context.cgroups.raise_limits(run.id, run.cpu, run.memory_bytes)
        self._context.cgroups.limit_sockets(run.id, run.memory_bytes)


def _write_files(run: Run, record: Record, bundle: Path, uid: int) -> None:
    """Write what the launcher puts into the sandbox."""
    for name, text in _files(run, record.ip).items():
        file = bundle / name
        file.touch(mode=0o600)
        file.write_text(text)
    if run.secret_files:
        secret_files.write(bundle, run.secret_files, uid + run.user)


def _files(run: Run, ip: str) -> Mapping[str, str]:
    """Return the files of a claim by their names in the bundle."""
    return {"start": start_script(run), "hosts": make_hosts(ip, run.hostname), "hostname": f"{run.hostname}\n"}


def make_claim(run: Run, bundle: Path, uid: int) -> dict[str, Any]:
    """Return what the launcher gives the sandbox. ``uid`` is the host's id of its root. Pure."""
    secrets = (secret_files.bind(bundle),) if run.secret_files else ()
    return {
        "hostname": run.hostname,
        "cwd": str(bundle),
        "mounts": [hide_source(bundle, secret_files.FOLDER)] if secrets else [],
        "tmpfs": dict(run.tmpfs),
        "folders": [bind.target for bind in secrets],
        "files": [
            _file(bundle / "hosts", "/etc/hosts", uid, 0o644),
            _file(bundle / "hostname", "/etc/hostname", uid, 0o644),
            _file(bundle / "start", START_SCRIPT, uid + run.user, 0o400),
        ],
        "binds": [make_bind(bind, bind.target) for bind in (*run.root.binds, *secrets)],
    }


def _file(source: Path, target: str, owner: int, mode: int) -> dict[str, Any]:
    return {"source": str(source), "target": target, "owner": owner, "mode": mode}
