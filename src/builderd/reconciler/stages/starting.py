"""Preparation of a sandbox's start, shared by serving sandboxes and trials."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from builderd.domain.builders import next_attempt
from builderd.domain.bundles import Bundle
from builderd.domain.ids import DiskId, new_sandbox_id
from builderd.domain.layers import app_folder
from builderd.domain.sandboxes import SECRETS_FOLDER, Sandbox, SandboxSpec
from builderd.domain.versions import NO_BUILD, NO_LAYER
from builderd.reconciler.core.observe import WorkItem
from builderd.services import bundles, credentials
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: File with a job's input, among the secret files: no credential has such a name.
STDIN = "_job/stdin"


def new_sandbox(uow: UnitOfWork, item: WorkItem, disk: DiskId, now: datetime) -> Sandbox:
    """Return the next sandbox record of the builder's present run."""
    builder = item.builder
    return Sandbox(
        id=new_sandbox_id(),
        builder_id=builder.id,
        version=item.version.number,
        generation=builder.generation,
        attempt=next_attempt(uow.sandboxes.of_generation(builder.id, builder.generation)),
        created_at=now,
        disk=disk,
    )


async def make_spec(application: Application, item: WorkItem, sandbox: Sandbox) -> SandboxSpec:
    """Return what the engine runs. A trial reaches no network. Raises ``NotFound`` when a credential is gone."""
    builder, settings = item.builder, item.version.settings
    command = in_root(settings.release if sandbox.release else settings.entrypoint, settings.root)
    stdin = "" if sandbox.release else settings.stdin

    def load(uow: UnitOfWork) -> tuple[credentials.Opened, Sequence[str]]:
        names = settings.credentials
        opened = credentials.open_all(uow, application.vault, builder.tenant_id, names) if names else {}
        return opened, [one.host for one in uow.domains.of_builder(builder.id)]

    secrets, own_domains = await application.store.read(load)
    platform = {
        "SERVICE_TOKEN": builder.service_token,
        "BUILDER_UUID": builder.id,
        "BUILDER_NAME": builder.name,
        "PREVIEW_URL": application.preview_domain.url(builder.host),
        "PORT": str(settings.port),
    }
    if own_domains:
        platform["BUILDER_DOMAINS"] = ",".join(own_domains)
    return SandboxSpec(
        id=sandbox.id,
        builder_id=builder.id,
        disk=sandbox.disk,
        hostname=builder.name,
        entrypoint=f"exec <{SECRETS_FOLDER}/{STDIN}\n{command}" if stdin else command,
        port=settings.port,
        env={**settings.variables, **credentials.as_env(secrets), **platform},
        resources=settings.resources,
        isolation=settings.isolation,
        layer_key=None if item.version.layer_key == NO_LAYER else item.version.layer_key,
        egress=not sandbox.trial,
        secret_files={**credentials.as_files(secrets), **({STDIN: stdin} if stdin else {})},
        tenant_id=builder.tenant_id,
        root=settings.root,
    )


def in_root(command: str, root: str) -> str:
    """Return the command as it runs in the folder ``root`` of ``/app``, which the app may have removed."""
    return f"cd {shlex.quote(app_folder(root))} || exit 1\n{command}" if root else command


async def put_bundle(application: Application, item: WorkItem, disk: DiskId) -> None:
    """Bring the version's files onto a disk that may have another version's, and what the app made of them."""
    bundle = await bundles.fetch(application, item.version)
    before, built = await _before(application, item, disk), item.version.build_key or NO_BUILD
    await application.engine.disks.put_bundle(disk, bundle, before, built)


async def _before(application: Application, item: WorkItem, disk: DiskId) -> Bundle | None:
    """The bundle that is on the disk: what it says itself, else what its builder's current version has."""
    report = await application.engine.disks.disk(disk)
    known = report.bundle_hash if report else None
    if known is None and item.current is not None:
        known = item.current.bundle_hash
    if known is None:
        return None
    with suppress(KeyError):
        return await application.bundles.get(known)
    return None
