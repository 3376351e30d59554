"""The drill: verify a backup by starting its restored disk in isolation, without a network."""

from __future__ import annotations

from dataclasses import replace

from builderd.domain.backups import Restore
from builderd.domain.builders import Builder, JobType
from builderd.domain.failures import exited_early, not_listening
from builderd.domain.ids import BuilderId, SandboxId, new_secret
from builderd.domain.qa import gate_failure, gate_passed
from builderd.domain.sandboxes import Sandbox
from builderd.domain.versions import Version
from builderd.reconciler.backups.context import BackupContext
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.stages.health_check import wait_until_up
from builderd.reconciler.stages.install import LayerInstalls
from builderd.reconciler.stages.starting import last_lines, make_spec
from builderd.services import qa


async def run_drill(context: BackupContext, restore: Restore, builder: Builder, version: Version) -> str | None:
    """Verify the restored disk by starting it; return the fault, or None.

    Jobs are skipped: a run would repeat their work.
    """
    if builder.job_type is JobType.ONE_TIME:
        return None
    app, sandbox_id = context.app, _sandbox_id(restore)
    layer = (await LayerInstalls(app).install(WorkItem(builder, version))).layer_key
    app.scratch.add(sandbox_id)
    try:
        await _clear(context, restore)
        sandbox = Sandbox(
            id=sandbox_id,
            builder_id=builder.id,
            version=version.number,
            generation=1,
            attempt=1,
            created_at=app.clock.now(),
            disk=restore.disk,
            trial=True,
        )
        item = WorkItem(builder, replace(version, layer_key=layer))
        return await _judge(context, item, await _start(context, restore, item, sandbox))
    finally:
        await _clear(context, restore)
        app.scratch.discard(sandbox_id)


async def _start(context: BackupContext, restore: Restore, item: WorkItem, sandbox: Sandbox) -> Sandbox:
    spec = await make_spec(context.app, item, sandbox)
    # Only the serving app may have the builder's service token, so the drill gets another one, and a log of its own.
    env = {**spec.env, "SERVICE_TOKEN": new_secret("bds")}
    report = await context.app.engine.sandboxes.start(replace(spec, builder_id=_drill_builder_id(restore), env=env))
    return replace(sandbox, started_at=report.started_at)


def _sandbox_id(restore: Restore) -> SandboxId:
    """Return the drill's sandbox id, constant for a restore, so that a retry finds what an earlier attempt left."""
    return SandboxId(restore.id.replace("-", "")[:16])


async def _clear(context: BackupContext, restore: Restore) -> None:
    sandbox_id = _sandbox_id(restore)
    await context.app.engine.sandboxes.stop(sandbox_id, 0)
    await context.app.engine.sandboxes.remove(sandbox_id)
    await context.app.engine.logs.delete_logs(_drill_builder_id(restore))


def _drill_builder_id(restore: Restore) -> BuilderId:
    """Return the builder id that a drill runs under, which keeps its log apart from the builder's."""
    return BuilderId(restore.id)


async def _judge(context: BackupContext, item: WorkItem, sandbox: Sandbox) -> str | None:
    app, settings = context.app, item.version.settings
    wait = await wait_until_up(app, item, sandbox, app.limits.start_seconds(settings))
    if wait.reachable:
        checks = await qa.judge(app, item.builder, item.version, replace(sandbox, listening_at=app.clock.now()))
        return None if gate_passed(checks) else _failed_start(gate_failure(checks))
    lines = await last_lines(app, sandbox)
    if wait.ended is None or wait.ended.end is None:
        return _failed_start(not_listening(wait.listening, settings.port, wait.seconds, lines))
    port = settings.port if item.builder.job_type.must_listen else None
    return _failed_start(exited_early(wait.ended.end, settings.resources, port, lines))


def _failed_start(reason: str) -> str:
    """Return the message for files that are complete while the app does not start with them."""
    return f"The files are whole, but the app did not come up with them: {reason}"
