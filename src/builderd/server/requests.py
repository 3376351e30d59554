"""Requests that bring code, as commands of the services, for the API and the pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import SANDBOX_COMMAND, STATIC_COMMAND, STATIC_MEMORY, JobType, Visibility
from builderd.builders.processes import read_procfile
from builderd.builders.service import Caller
from builderd.code import service as bundles
from builderd.code.detection.detect import build_for, detect
from builderd.code.detection.model import Detected
from builderd.code.detection.project import Project, project_of
from builderd.code.model import Alteration, Bundle, folder_of, make_bundle
from builderd.core.errors import BundleLost, ValidationFailed
from builderd.core.ids import TenantId
from builderd.schemas.builders import NewBuilder
from builderd.schemas.files import bundle_files
from builderd.schemas.versions import NewVersion, given_fields, new_settings
from builderd.versions import service as deployments
from builderd.versions.model import Protocol, entrypoint_error, read_env_file, stage_command_error
from builderd.versions.service import Change

#: Code of no more files and bytes is hashed at once, which takes less than a change of threads.
FEW_FILES, SMALL_BYTES = 20, 50_000
#: Kinds whose ``Procfile`` may name a release: those that it can start.
RELEASING = frozenset({JobType.ALWAYS_ON, JobType.WORKER})
#: A site whose request asks for one, and whose code has no page that is found.
ALL_FILES = Detected("static", STATIC_COMMAND, "the request asks for it", "static")
T = TypeVar("T")


async def bundle_of(application: Application, tenant_id: TenantId, new: NewBuilder) -> Bundle:
    """Return the code of a request. Raises ``ValidationFailed`` or ``TooLarge`` for an upload that is not taken."""
    if new.source is None:
        files = bundle_files(new.files)
        is_small = len(files) <= FEW_FILES and sum(file.size for file in files) <= SMALL_BYTES
        return make_bundle(files) if is_small else await asyncio.to_thread(make_bundle, files)
    return await bundles.bundle(application, tenant_id, new.source.upload_id.lower())


async def new_builder(application: Application, new: NewBuilder, bundle: Bundle) -> builders.NewBuilder:
    """Return the builder that a request asks for; what it leaves out is detected in its code.

    Raises ``ValidationFailed`` where nothing starts the code, and for an ``env_file`` that is missing or faulty. A
    refusal removes an upload's code again.
    """
    async with bundles.dropped_on_error(application, bundle if new.source else None):
        code = _code_in(bundle, new.root)
        found = await _started(new, code)
        job_type = new.job_type if "job_type" in new.model_fields_set else JobType(found.job_type)
        settings = new_settings(new, found.entrypoint, application.limits.default_isolation)
        if "protocol" not in new.model_fields_set and job_type.has_preview:
            settings = replace(settings, protocol=Protocol(found.protocol))
        if new.build is None and job_type is not JobType.SANDBOX:
            settings = replace(settings, build=found.build)
        if job_type is JobType.STATIC and "memory" not in new.resources.model_fields_set:
            settings = replace(settings, resources=replace(settings.resources, memory=STATIC_MEMORY))
        if new.env_file:
            settings = replace(settings, env_file_values=await asyncio.to_thread(read_env_file, bundle, new.env_file))
        if new.release is None and job_type in RELEASING:
            settings = replace(settings, release=found.release)
        if new.processes is None:
            settings = replace(
                settings, processes=read_procfile(folder_of(code, found.root), job_type, found.entrypoint)
            )
        # A sandbox's preview is private unless the request says otherwise.
        is_private = (found.is_private or job_type is JobType.SANDBOX) and "visibility" not in new.model_fields_set
        return builders.NewBuilder(
            name=new.name,
            bundle_hash=bundle.hash,
            settings=replace(settings, root=new.root or found.root, known_port=found.port or 0, detected=_told(found)),
            job_type=job_type,
            visibility=Visibility.PRIVATE if is_private else new.visibility,
            auto_stop_interval=new.auto_stop_interval,
            backup_interval_hours=new.backup_interval_hours,
            scale=new.scale,
        )


def _code_in(bundle: Bundle, root: str) -> Bundle:
    """Return the code of a folder. Raises ``ValidationFailed`` where the code has no such folder."""
    code = folder_of(bundle, root)
    if root and not code.files:
        raise ValidationFailed({"root": [f"is no folder of the code: {root!r} has no files"]})
    return code


async def _started(new: NewBuilder, code: Bundle) -> Detected:
    """Return what starts the code: the request's command, that of the kind that it asks for, or what is found."""
    kind = new.job_type if "job_type" in new.model_fields_set else None
    command = new.entrypoint or (SANDBOX_COMMAND if kind is JobType.SANDBOX else "")
    if command:
        build, release = await _beside(code, lambda project: (build_for(project, command), release_of(project)))
        found = Detected("", command, "", build=build, release=release)
    else:
        found = await _found(code, kind)
    if kind is JobType.STATIC and found.job_type != "static" and not command:
        found = replace(ALL_FILES, build=found.build)
    return _checked(found)


async def _found(code: Bundle, kind: JobType | None = None) -> Detected:
    """Return what is found in the code. Raises ``ValidationFailed`` with what to send instead of code that is not run.

    ``kind``: the line of the ``Procfile`` that counts.
    """
    found = await _beside(code, lambda project: detect(project, kind))
    if isinstance(found, Detected):
        return found
    if kind is JobType.STATIC:
        return ALL_FILES
    raise ValidationFailed({"entrypoint": [f"is required: {found.reason}"]})


async def _beside(code: Bundle, read: Callable[[Project], T]) -> T:
    """Return what is read from the code, of much code in a thread."""
    is_small = len(code.files) <= FEW_FILES and code.size <= SMALL_BYTES
    return read(project_of(code)) if is_small else await asyncio.to_thread(read, project_of(code))


def release_of(project: Project) -> str:
    """Return the release command of a project whose start is given: that of its Procfile."""
    return project.processes.get("release", "")


def _checked(found: Detected) -> Detected:
    """Return what was found. Raises ``ValidationFailed`` where one of its commands cannot run."""
    checks = {
        "entrypoint": entrypoint_error(found.entrypoint),
        "build": stage_command_error(found.build),
        "release": stage_command_error(found.release),
    }
    if errors := {name: [why] for name, why in checks.items() if why}:
        raise ValidationFailed(errors)
    return found


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
        given = {**await _found_again(application, caller, builder_id, bundle, given), **given}
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


async def _found_again(
    application: Application, caller: Caller, builder_id: str, bundle: Bundle | None, given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the commands that are found in the new code, in place of those that were found in the old one.

    A command that differs from what the old code has was given, and stays. ``bundle`` is None where the code stays.
    Raises ``ValidationFailed``, also for a ``root`` that the code does not have, and for code of another kind.
    """
    builder, base = await application.store.read(
        lambda uow: (builders.get(uow, caller.tenant_id, builder_id), deployments.base(uow, caller, builder_id))
    )
    settings, root = base.settings, given.get("root")
    code = bundle or await bundles.fetch(application, base)
    code = _code_in(code, settings.root if root is None else root)
    if builder.job_type is JobType.SANDBOX:
        return {}
    try:
        old = await bundles.fetch_root(application, base)
    except BundleLost:
        if bundle is None:
            raise
        # The new code mends the builder. Which commands came from the lost files is not known: all of them stay.
        return {}
    before = await _beside(old, lambda project: detect(project, builder.job_type))
    if not isinstance(before, Detected) or given.get("entrypoint"):
        before = Detected("", "", "", release=await _beside(old, release_of))
    kept: dict[str, Any] = {}
    name = next((name for name, command in before.commands.items() if command == settings.entrypoint), None)
    if name is not None:
        found = await _found(code, builder.job_type)
        kept |= {
            "entrypoint": found.commands.get(name, found.entrypoint),
            "detected": _told(found),
            "known_port": found.port or 0,
        }
        _check_kind(builder.job_type, found)
        kept |= {"build": found.build} if settings.build == before.build else {}
        kept |= {"root": found.root} if found.root else {}
    else:
        found = Detected(
            "",
            settings.entrypoint,
            "",
            release=await _beside(code, release_of),
        )
        kept["detected"] = {}
    if builder.job_type in RELEASING and settings.release == before.release:
        kept["release"] = found.release
    _checked(replace(found, entrypoint=kept.get("entrypoint", settings.entrypoint)))
    processes: Mapping[str, str] = {}
    with suppress(ValidationFailed):  # it may be from before a wrong line was refused
        processes = read_procfile(old, builder.job_type, settings.entrypoint)
    if settings.processes == processes:
        command = kept.get("entrypoint", settings.entrypoint)
        kept["processes"] = read_procfile(folder_of(code, found.root), builder.job_type, command)
    return kept


def _told(found: Detected) -> Mapping[str, Any]:
    """Return the findings as the API shows them; empty for a command that was given."""
    names = ("framework", "reason", "notes", "added")
    return {name: getattr(found, name) for name in names} if found.framework else {}


def _check_kind(job_type: JobType, found: Detected) -> None:
    """Raise ``ValidationFailed`` where the new code is of another kind than the builder, which cannot change."""
    fits = found.job_type == job_type or job_type is JobType.ONE_TIME
    if not fits and not (job_type is JobType.ALWAYS_ON and found.job_type in ("static", "one_time")):
        why = f"cannot be changed: it is {job_type.value!r}, and the new code is {found.job_type!r} ({found.reason})"
        raise ValidationFailed({"job_type": [f"{why}: deploy it as another builder"]})
