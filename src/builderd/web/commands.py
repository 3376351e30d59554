"""Forms and requests of the pages, checked by the API's shapes, as commands of the services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from builderd.api.server.json_parsing import take
from builderd.domain.builders import Builder, JobType
from builderd.domain.bundles import Bundle, make_bundle
from builderd.domain.errors import ValidationFailed
from builderd.domain.procfile import process_commands, web_command, worker_command
from builderd.domain.tokens import Scope
from builderd.domain.versions import Version, entrypoint_error
from builderd.ports.store import UnitOfWork
from builderd.schemas.v1.builders import NO_ENTRYPOINT, NewBuilder
from builderd.schemas.v1.files import bundle_files
from builderd.schemas.v1.settings import given_fields, new_settings
from builderd.schemas.v1.shape import Shape
from builderd.schemas.v1.versions import NewSettings, NewVersion
from builderd.services import builders, bundles, deployments, outcomes, uploads
from builderd.services.application import Application
from builderd.services.deployments import Change, Deployed
from builderd.web.visits import Visit

S = TypeVar("S", bound=Shape)


def shape_of(application: Application, shape: type[S], values: Mapping[str, Any]) -> S:
    """Return the values as this shape of the API. Raises ``ValidationFailed``."""
    return take(shape, json.dumps(values).encode(), {"maximum": application.limits.maximum})


async def create(visit: Visit, new: NewBuilder) -> Builder:
    """Create a builder. Raises what the services raise, and ``Forbidden`` for a gate left out without the scope."""
    _check_gates(visit, new)
    application = visit.application
    bundle = await _bundle(visit, new)
    job_type = _job_type(new, bundle)
    entrypoint = new.entrypoint or _procfile_command(bundle, job_type)
    settings = new_settings(new, entrypoint, application.limits.default_isolation)
    command = builders.NewBuilder(
        name=new.name,
        bundle_hash=bundle.hash,
        settings=settings,
        job_type=job_type,
        visibility=new.visibility,
        auto_stop_interval=new.auto_stop_interval,
        backup_interval_hours=new.backup_interval_hours,
    )
    return await visit.operations.create(visit.caller, command, bundle, None)


async def deploy(visit: Visit, builder: Builder, new: NewVersion) -> Deployed:
    """Deploy new code, with the settings that it brings. Raises as ``create`` does."""
    _check_gates(visit, new)
    application, bundle = visit.application, await _bundle(visit, new)
    given = given_fields(new)
    if "entrypoint" not in given:
        given["entrypoint"] = await _kept_entrypoint(visit, builder, bundle)
    change = Change.of({**given, "bundle_hash": bundle.hash})
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.deploy(uow, application, visit.caller, builder.id, change, visit.now),
        None,
        bundle,
    )


async def configure(visit: Visit, builder: Builder, values: Mapping[str, Any]) -> Deployed:
    """Change settings: at once where the app need not know of them, else by a new version of the same code."""
    application = visit.application
    new = shape_of(application, NewSettings, values)
    change = Change.of(given_fields(new))
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.configure(uow, application, visit.caller, builder.id, change, visit.now),
        None,
    )


async def roll_back(visit: Visit, builder: Builder, number: int) -> Deployed:
    """Deploy the code and settings of an old version again."""
    application = visit.application
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.roll_back(uow, application, visit.caller, builder.id, number, visit.now),
        None,
    )


async def renew_service_token(visit: Visit, builder: Builder) -> Builder:
    """Make a new service token; the old one ends."""
    application = visit.application

    def renew(uow: UnitOfWork) -> Builder:
        return deployments.renew_service_token(uow, application, visit.caller, builder.id, visit.now)

    return await outcomes.after_take_over(application, builder.id, lambda: application.commit(renew))


def _check_gates(visit: Visit, new: NewBuilder | NewVersion) -> None:
    if new.skip_review or new.skip_qa:
        visit.require(Scope.SKIP_GATES)


async def _bundle(visit: Visit, new: NewBuilder | NewVersion) -> Bundle:
    if new.source is None:
        return await asyncio.to_thread(lambda: make_bundle(bundle_files(new.files)))
    return await uploads.bundle(visit.application, visit.token.tenant_id, new.source.upload_id.lower())


def _job_type(new: NewBuilder, bundle: Bundle) -> JobType:
    """Return the job type: a worker where the request leaves it out and the ``Procfile`` has only ``worker:``."""
    if "job_type" in new.model_fields_set or new.entrypoint is not None:
        return new.job_type
    has_only_worker = web_command(bundle) is None and worker_command(bundle) is not None
    return JobType.WORKER if has_only_worker else new.job_type


def _procfile_command(bundle: Bundle, job_type: JobType) -> str:
    """Return the command of the bundle's Procfile. Raises ``ValidationFailed`` without a usable one."""
    command = worker_command(bundle) if job_type is JobType.WORKER else web_command(bundle)
    why = NO_ENTRYPOINT if command is None else entrypoint_error(command)
    if command is None or why is not None:
        raise ValidationFailed({"entrypoint": [why or NO_ENTRYPOINT]})
    return command


async def _kept_entrypoint(visit: Visit, builder: Builder, bundle: Bundle) -> str | None:
    """Return the new ``Procfile``'s command, if the old command came from the old one; None keeps the old command."""
    commands = process_commands(bundle)
    if not commands:
        return None
    base = await visit.read(lambda uow: deployments.base(uow, visit.caller, builder.id))
    before = process_commands(await bundles.fetch(visit.application, base))
    process = next((name for name in commands if before.get(name) == base.settings.entrypoint), None)
    if process is None:
        return None
    if why := entrypoint_error(commands[process]):
        raise ValidationFailed({"entrypoint": [why]})
    return commands[process]


async def deploy_edited(
    visit: Visit, builder: Builder, version: Version, path: str, content: str, entrypoint: str
) -> Deployed:
    """Deploy the files of a version with one of them changed. Raises as ``deploy`` does."""
    application = visit.application
    new = shape_of(application, NewVersion, {"files": {path: content}, "entrypoint": entrypoint})
    base = await bundles.fetch(application, version)
    (edited,) = bundle_files(new.files)
    old = next((file for file in base.files if file.path == path), None)
    if old is not None:
        edited = replace(edited, executable=old.executable)
    files = [*(file for file in base.files if file.path != path), edited]
    bundle = await asyncio.to_thread(make_bundle, files)
    change = Change.of({"bundle_hash": bundle.hash, "entrypoint": new.entrypoint})
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.deploy(uow, application, visit.caller, builder.id, change, visit.now),
        None,
        bundle,
    )
