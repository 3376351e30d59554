"""Backups: list, take, restore, remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from builderd.application import Application
from builderd.backups import restores
from builderd.backups import service as backups
from builderd.backups.model import Backup, BackupStatus, Restore
from builderd.builders import outcomes
from builderd.builders import presenters as door
from builderd.builders.api import Uuid
from builderd.core.errors import BuilderdError, NotFound
from builderd.core.ids import TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.schemas import builder_parts as wire
from builderd.schemas.builder_parts import BackupAnswer, BackupPage, NewBuilderOfBackup, NewRestore
from builderd.schemas.builders import BuilderAnswer
from builderd.server import openapi
from builderd.server.answers import PREFIX, Answer, failure, success
from builderd.server.auth import Identity, Reader, TheApplication, Writer, operations_of
from builderd.server.bodies import Received, json_body, optional_json_body
from builderd.server.pages import Listing, PageQuery, ThePage, listed, page_of
from builderd.server.preferences import APPLIED, count_blocking_call, until_disconnect, wants_async

router = APIRouter(prefix=PREFIX, tags=[openapi.BACKUPS])

MAX_BODY_BYTES = 4096
Id = Annotated[str, Path(description="The backup's id.", json_schema_extra={"format": "uuid"})]
RestoreBody = Annotated[Received[NewRestore], Depends(optional_json_body(NewRestore, MAX_BODY_BYTES))]
NewBody = Annotated[Received[NewBuilderOfBackup], Depends(json_body(NewBuilderOfBackup, MAX_BODY_BYTES))]


LISTED = openapi.answer(200, BackupPage, "A page of them.")
RESTORED: dict[int | str, dict[str, Any]] = {
    **openapi.answer(200, BuilderAnswer, "The builder serves what was restored."),
    **openapi.answer(202, BackupAnswer, "It is being restored; events tell how far it is."),
    **openapi.failures(400, 401, 403, 404, 409, 413, 422, 429, stages=True),
}


@router.get("/backups", responses={**LISTED, **openapi.failures(401, 403, 422)})
async def list_all_backups(request: Request, application: TheApplication, identity: Reader, query: ThePage) -> Response:
    """The backups of all your builders, of deleted ones too for as long as they are kept."""
    tenant, now = identity.token.tenant_id, application.clock.now()
    return await _page(request, tenant, lambda uow: backups.of_tenant(uow, tenant, now), query)


@router.get("/builders/{uuid}/backups", responses={**LISTED, **openapi.failures(401, 403, 404, 422)})
async def list_backups(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage
) -> Response:
    """A builder's backups, the newest first, also those being taken and those that failed."""
    tenant, now = identity.token.tenant_id, application.clock.now()
    return await _page(request, tenant, lambda uow: backups.of_builder(uow, tenant, uuid.lower(), now), query)


async def _page(
    request: Request, tenant: TenantId, read: Callable[[UnitOfWork], Sequence[Backup]], query: PageQuery
) -> Response:
    async def listing() -> Listing:
        found = await operations_of(request).application.store.read(read)
        shown = query.cut(found)
        return page_of(f"{len(shown)} of {len(found)} backups.", query.of(len(found)), map(_present, shown))

    return await listed(request, tenant, listing)


@router.post(
    "/builders/{uuid}/backups",
    openapi_extra={"parameters": [openapi.PREFER]},
    responses={
        **openapi.answer(201, BackupAnswer, "It is taken."),
        **openapi.answer(202, BackupAnswer, "It is being taken."),
        **openapi.failures(401, 403, 404, 409),
    },
)
async def take_backup(request: Request, application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Take a backup now, whether or not they are taken regularly. The app is paused for some milliseconds."""
    with count_blocking_call(request, identity):
        planned = await backups.ask(application, identity.caller, uuid.lower())
        if wants_async(request):
            message = "The backup is being taken."
            return success(BackupAnswer(message=message, data=_present(planned)), 202, APPLIED).response()
        taken = await until_disconnect(request, outcomes.taken(application, planned))
    return success(BackupAnswer(message="The backup is taken.", data=_present(taken)), 201).response()


@router.post(
    "/builders/{uuid}/backups/{backup_id}/restore",
    responses=RESTORED,
    openapi_extra={
        "parameters": [openapi.PREFER],
        "requestBody": {**openapi.body_of(NewRestore, {}, required=False)["requestBody"]},
    },
)
async def restore_backup(
    request: Request, application: TheApplication, identity: Writer, uuid: Uuid, backup_id: Id, body: RestoreBody
) -> Response:
    """Restore a backup into the builder, whose present disk is backed up first, or as a new builder.

    The builder keeps serving until the restored files are complete and compared, and after a failure.
    """
    return await _restore(request, application, identity, backup_id, uuid.lower(), body.value.as_)


@router.post(
    "/backups/{backup_id}/restore",
    responses=RESTORED,
    openapi_extra={"parameters": [openapi.PREFER], **openapi.body_of(NewBuilderOfBackup, {"as": "my-api-again"})},
)
async def restore_as_builder(
    request: Request, application: TheApplication, identity: Writer, backup_id: Id, body: NewBody
) -> Response:
    """Make a new builder of a backup, also of one whose builder was deleted."""
    return await _restore(request, application, identity, backup_id, None, body.value.as_)


async def _restore(
    request: Request, application: Application, identity: Identity, backup_id: str, uuid: str | None, name: str | None
) -> Response:
    now, caller = application.clock.now(), identity.caller

    def want(uow: UnitOfWork) -> tuple[Backup, Restore]:
        backup = backups.find(uow, caller.tenant_id, backup_id.lower(), now, uuid)
        if name is None:
            return backup, restores.request(uow, application, caller, backup, now)
        return backup, restores.request_new(uow, application, caller, backup, name, now)

    with count_blocking_call(request, identity):
        backup, wanted = await application.store.write(want)
        application.signals.change(backup.builder_id)
        if wants_async(request):
            message = "The backup is being restored."
            return success(BackupAnswer(message=message, data=_present(backup)), 202, APPLIED).response()
        return (await until_disconnect(request, _restored(application, wanted))).response()


async def _restored(application: Application, wanted: Restore) -> Answer:
    done = await outcomes.restored(application, wanted)
    try:
        if done.number is not None:
            await outcomes.deployed(application, done.builder_id, done.number)
    except BuilderdError as error:
        return failure(error)
    builder = await application.store.read(lambda uow: uow.builders.get(done.made or done.builder_id))
    if builder is None:
        raise NotFound("The builder is gone.")
    return await door.started(application, builder)


@router.delete(
    "/builders/{uuid}/backups/{backup_id}", responses=openapi.answers(200, BackupAnswer, "It is removed.", 404, 409)
)
async def remove_backup(application: TheApplication, identity: Writer, uuid: Uuid, backup_id: Id) -> Response:
    """Remove a backup. It is in no list from now on; its space comes back with the next tidying."""
    return await _remove(application, identity, backup_id, uuid.lower())


@router.delete("/backups/{backup_id}", responses=openapi.answers(200, BackupAnswer, "It is removed.", 404, 409))
async def remove_any_backup(application: TheApplication, identity: Writer, backup_id: Id) -> Response:
    """Remove a backup, also one whose builder was deleted."""
    return await _remove(application, identity, backup_id, None)


async def _remove(application: Application, identity: Identity, backup_id: str, uuid: str | None) -> Response:
    now = application.clock.now()

    def remove(uow: UnitOfWork) -> Backup:
        backup = backups.find(uow, identity.token.tenant_id, backup_id.lower(), now, uuid)
        backups.remove(uow, backup)
        return backup

    removed = await application.store.write(remove)
    return success(BackupAnswer(message="The backup is removed.", data=_present(removed))).response()


def _present(backup: Backup) -> wire.Backup:
    has_ended = backup.status in (BackupStatus.DONE, BackupStatus.FAILED)
    return wire.Backup.of(
        backup,
        builder=backup.builder_id,
        finished_at=backup.finished_at if has_ended else None,
        last_verified_at=backup.verified_at,
    )
