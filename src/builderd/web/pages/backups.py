"""Backups of a builder: taken, restored, restored as a new builder, removed."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from builderd.domain.backups import Backup, BackupKey, BackupStatus, Restore
from builderd.domain.errors import BadRequest
from builderd.domain.tokens import Scope
from builderd.services import backups, restores
from builderd.store import UnitOfWork
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of
from builderd.web.visits import Visit, page, see_other


async def show_backups(visit: Visit) -> Response:
    """Show the backups, and what is being restored."""

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, Sequence[Backup], Sequence[Restore], BackupKey | None]:
        frame = frame_of(uow, visit)
        found = backups.of_builder(uow, visit.token.tenant_id, frame.builder.id, visit.now)
        return frame, found, uow.restores.open_of(frame.builder.id), uow.backup_keys.get(visit.token.tenant_id)

    frame, found, open_restores, key = await visit.read(look)
    done = [one for one in found if one.status is BackupStatus.DONE]
    return await builder_page(
        visit,
        "backups.html",
        "backups",
        frame,
        backups=found,
        restores=open_restores,
        damage=key.fault if key else "",
        added=sum(one.added_bytes for one in done),
    )


async def change(visit: Visit) -> Response:
    """Take, restore or remove a backup."""
    form, builder = await visit.form(), await visit.find()
    application, action, back = visit.application, form.text("action"), f"/builders/{builder.name}/backups"
    if action == "take":
        await backups.ask(application, visit.caller, builder.id)
        return see_other(back, {"done": "backup"})
    if action not in ("restore", "restore-as", "backup-removed"):
        raise BadRequest(f"There is no action {action!r} on backups.")

    def work(uow: UnitOfWork) -> None:
        backup = backups.find(uow, visit.token.tenant_id, form.text("backup"), visit.now, builder.id)
        if action == "restore":
            restores.request(uow, application, visit.caller, backup, visit.now)
        elif action == "restore-as":
            restores.request_new(uow, application, visit.caller, backup, form.text("as").strip(), visit.now)
        else:
            backups.remove(uow, backup)

    await visit.write(work)
    application.signals.change(builder.id)
    return see_other("/builders" if action == "restore-as" else back, {"done": action})


ROUTES = [
    page("/builders/{name}/backups", show_backups),
    page("/builders/{name}/backups", change, post=True, scope=Scope.WRITE),
]
