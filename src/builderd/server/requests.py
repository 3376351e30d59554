"""Requests that bring code, as commands of the services, for the API and the pages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import SANDBOX_COMMAND, STATIC_COMMAND, STATIC_MEMORY, JobType, Visibility
from builderd.builders.service import Caller
from builderd.code import service as bundles
from builderd.code.entrypoints import find_build, process_commands
from builderd.code.model import Alteration, Bundle, folder_of, make_bundle
from builderd.core.errors import BundleLost, ValidationFailed
from builderd.core.ids import TenantId
from builderd.schemas.builders import NO_ENTRYPOINT, NewBuilder
from builderd.schemas.files import bundle_files
from builderd.schemas.versions import NewVersion, given_fields, new_settings
from builderd.versions import service as deployments
from builderd.versions.model import entrypoint_error, read_env_file, stage_command_error
from builderd.versions.service import Change

#: Code of no more files and bytes is hashed at once, which takes less than a change of threads.
FEW_FILES, SMALL_BYTES = 20, 50_000
#: Kinds whose ``Procfile`` may name a release: those that it can start.
RELEASING = frozenset({JobType.ALWAYS_ON, JobType.WORKER})


async def bundle_of(application: Application, tenant_id: TenantId, new: NewBuilder) -> Bundle:
    """Return the code of a request. Raises ``ValidationFailed`` or ``TooLarge`` for an upload that is not taken."""
    if new.source is None:
        files = bundle_files(new.files)
        is_small = len(files) <= FEW_FILES and sum(file.size for file in files) <= SMALL_BYTES
        return make_bundle(files) if is_small else await asyncio.to_thread(make_bundle, files)
    return await bundles.bundle(application, tenant_id, new.source.upload_id.lower())


async def new_builder(application: Application, new: NewBuilder, bundle: Bundle) -> builders.NewBuilder:
    """Return the builder that a request asks for.

    Raises ``ValidationFailed`` without a usable command, and for an ``env_file`` that is missing or faulty. A refusal
    removes an upload's code again.
    """
    async with bundles.dropped_on_error(application, bundle if new.source else None):
        code = _code_in(bundle, new.root)
        job_type = _job_type(new, code)
        entrypoint = new.entrypoint or _command(code, job_type)
        settings = new_settings(new, entrypoint, application.limits.default_isolation)
        if new.build is None and job_type is not JobType.SANDBOX:
            settings = replace(settings, build=find_build(code, entrypoint))
        if job_type is JobType.STATIC and "memory" not in new.resources.model_fields_set:
            settings = replace(settings, resources=replace(settings.resources, memory=STATIC_MEMORY))
        if new.env_file:
            settings = replace(settings, env_file_values=await asyncio.to_thread(read_env_file, bundle, new.env_file))
        if new.release is None and job_type in RELEASING:
            settings = replace(settings, release=_release(code))
        # A sandbox's preview is private unless the request says otherwise.
        is_private = new.job_type is JobType.SANDBOX and "visibility" not in new.model_fields_set
        return builders.NewBuilder(
            name=new.name,
            bundle_hash=bundle.hash,
            settings=settings,
            job_type=job_type,
            visibility=Visibility.PRIVATE if is_private else new.visibility,
            auto_stop_interval=new.auto_stop_interval,
            backup_interval_hours=new.backup_interval_hours,
        )


def _code_in(bundle: Bundle, root: str) -> Bundle:
    """Return the code of a folder. Raises ``ValidationFailed`` where the code has no such folder."""
    code = folder_of(bundle, root)
    if root and not code.files:
        raise ValidationFailed({"root": [f"is no folder of the code: {root!r} has no files"]})
    return code


def _release(bundle: Bundle) -> str:
    """Return the release command of the bundle's ``Procfile``. Raises ``ValidationFailed`` for one that cannot run."""
    command = process_commands(bundle).get("release", "")
    if why := stage_command_error(command):
        raise ValidationFailed({"release": [why]})
    return command


def _job_type(new: NewBuilder, bundle: Bundle) -> JobType:
    """Return the job type: a worker where the request leaves it out and the ``Procfile`` has only ``worker:``."""
    if "job_type" in new.model_fields_set or new.entrypoint is not None:
        return new.job_type
    commands = process_commands(bundle)
    return JobType.WORKER if "worker" in commands and "web" not in commands else new.job_type


def _command(bundle: Bundle, job_type: JobType) -> str:
    """Return the command of the bundle's ``Procfile``, or a sandbox's. Raises ``ValidationFailed`` without one."""
    if job_type in (JobType.SANDBOX, JobType.STATIC):
        return SANDBOX_COMMAND if job_type is JobType.SANDBOX else STATIC_COMMAND
    command = process_commands(bundle).get("worker" if job_type is JobType.WORKER else "web")
    why = NO_ENTRYPOINT if command is None else entrypoint_error(command)
    if command is None or why is not None:
        raise ValidationFailed({"entrypoint": [why or NO_ENTRYPOINT]})
    return command


async def new_version(
    application: Application, caller: Caller, builder_id: str, new: NewVersion, *, fresh: bool = False
) -> tuple[Change, Bundle | None]:
    """Return the change that a request asks for, and its code if it has any.

    Raises ``ValidationFailed``. A refusal removes the code that was stored for the request.
    """
    bundle = None
    if new.stored is not None:
        alteration = Alteration(tuple(bundle_files(new.files)), tuple(new.stored.remove), new.stored.result)
        bundle = await bundles.alter(application, caller, builder_id, new.stored.bundle, alteration)
    elif "files" in new.model_fields_set or new.source is not None:
        bundle = await bundle_of(application, caller.tenant_id, new)
    async with bundles.dropped_on_error(application, bundle if new.stored or new.source else None):
        given = await _given(application, caller, builder_id, new, bundle)
        return Change.of({**given, "fresh": fresh}), bundle


async def _given(
    application: Application, caller: Caller, builder_id: str, new: NewVersion, bundle: Bundle | None
) -> dict[str, Any]:
    """Return the fields that change: those of the request, and those that its code brings."""
    given = given_fields(new)
    if bundle is not None:
        given["bundle_hash"] = bundle.hash
    given |= await _env_file(application, caller, builder_id, new, bundle)
    if bundle is not None or "root" in given:
        given = {**await _kept_commands(application, caller, builder_id, bundle, given.get("root")), **given}
    return given


async def _env_file(
    application: Application, caller: Caller, builder_id: str, new: NewVersion, bundle: Bundle | None
) -> dict[str, Any]:
    """Return ``env_file`` with its variables, read again if the files or the name change; nothing if both stay."""
    is_given = "env_file" in new.model_fields_set
    if bundle is None and not is_given:
        return {}
    path, code = new.env_file, bundle
    if not is_given or (code is None and path):
        base = await application.store.read(lambda uow: deployments.base(uow, caller, builder_id))
        path = path if is_given else base.settings.env_file
        code = code or await bundles.fetch(application, base)
    values = await asyncio.to_thread(read_env_file, code, path) if code is not None else {}
    return {"env_file": path, "env_file_values": values}


async def _kept_commands(
    application: Application, caller: Caller, builder_id: str, bundle: Bundle | None, root: str | None
) -> Mapping[str, str]:
    """Return the commands of the new ``Procfile`` in place of those that came from the old one.

    A command that did not come from there is left out, and stays. ``bundle`` and ``root`` are None where they stay.
    Raises ``ValidationFailed``, also for a ``root`` that the code does not have.
    """
    builder, base = await application.store.read(
        lambda uow: (builders.get(uow, caller.tenant_id, builder_id), deployments.base(uow, caller, builder_id))
    )
    settings = base.settings
    code = bundle or await bundles.fetch(application, base)
    code = _code_in(code, settings.root if root is None else root)
    commands = process_commands(code)
    if not commands and not settings.release:
        return {}
    try:
        old = await bundles.fetch_root(application, base)
    except BundleLost:
        if bundle is None:
            raise
        # The new code mends the builder. Which commands came from the lost files is not known: all of them stay.
        return {}
    before, kept = process_commands(old), {}
    process = next((name for name in commands if before.get(name) == settings.entrypoint), None)
    if process is not None:
        if why := entrypoint_error(commands[process]):
            raise ValidationFailed({"entrypoint": [why]})
        kept["entrypoint"] = commands[process]
    if builder.job_type in RELEASING and settings.release == before.get("release", ""):
        kept["release"] = _release(code)
    return kept
