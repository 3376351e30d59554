"""Executions: a command run beside the app, in its sandbox."""

from __future__ import annotations

from dataclasses import replace

from builderd.domain.errors import InvalidState
from builderd.domain.ids import SandboxId, TenantId
from builderd.domain.sandboxes import ExecResult
from builderd.ports.store import UnitOfWork
from builderd.services import builders
from builderd.services.application import Application


async def run(
    application: Application, tenant_id: TenantId, builder_id: str, command: str, timeout_seconds: float
) -> ExecResult:
    """Run it and wait. Raises ``NotFound``, or ``InvalidState`` when no sandbox runs."""
    now = application.clock.now()

    def find(uow: UnitOfWork) -> SandboxId:
        builder = builders.get(uow, tenant_id, builder_id)
        sandbox = uow.sandboxes.open_of(builder.id)
        if sandbox is None or sandbox.started_at is None:
            raise InvalidState(f"The builder is {builder.status}: start it before you run a command in it.")
        return sandbox.id

    def touch(uow: UnitOfWork) -> None:
        builder = builders.get(uow, tenant_id, builder_id, lock=True)
        uow.builders.save(replace(builder, last_active_at=now))

    sandbox = await application.store.read(find)
    await application.store.write(touch)
    return await application.engine.execute(sandbox, command, timeout_seconds, application.limits.exec_output)
