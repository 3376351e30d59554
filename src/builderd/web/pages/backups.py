"""Backups of a builder: taken, restored, restored as a new builder, removed."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from builderd.domain.backups import BackupStatus
from builderd.domain.errors import BadRequest
from builderd.domain.tokens import Scope
from builderd.services import backups, restores
from builderd.store import UnitOfWork
from builderd.web.pages.builder import BuilderFrame, builder_page, read_frame
from builderd.web.visits import Visit, page, see_other


@page("/builders/{name}/backups")
async def show_backups(visit: Visit) -> Response:
    """Show the backups, and what is being restored."""
    tenant = visit.token.tenant_id

    def look(uow: UnitOfWork, frame: BuilderFrame) -> dict[str, Any]:
        found, key = backups.of_builder(uow, tenant, frame.builder.id, visit.now), uow.backup_keys.get(tenant)
        added = sum(one.added_bytes for one in found if one.status is BackupStatus.DONE)
        restores = uow.restores.open_of(frame.builder.id)
        return {"backups": found, "restores": restores, "damage": key.fault if key else "", "added": added}

    frame, found = await read_frame(visit, look)
    return await builder_page(visit, "backups.html", "backups", frame, **found)


@page("/builders/{name}/backups", post=True, scope=Scope.WRITE)
async def change(visit: Visit) -> Response:
    """Take, restore or remove a backup."""
    form, builder = await visit.form(), await visit.find()
    application, action, back = visit.application, form.get("action", ""), f"/builders/{builder.name}/backups"
    if action == "take":
        await backups.ask(application, visit.caller, builder.id)
        return see_other(back, done="backup")
    if action not in ("restore", "restore-as", "backup-removed"):
        raise BadRequest(f"There is no action {action!r} on backups.")

    def work(uow: UnitOfWork) -> None:
        backup = backups.find(uow, visit.token.tenant_id, form.get("backup", ""), visit.now, builder.id)
        if action == "restore":
            restores.request(uow, application, visit.caller, backup, visit.now)
        elif action == "restore-as":
            restores.request_new(uow, application, visit.caller, backup, form.get("as", "").strip(), visit.now)
        else:
            backups.remove(uow, backup)

    await visit.write(work)
    application.signals.change(builder.id)
    return see_other("/builders" if action == "restore-as" else back, done=action)
