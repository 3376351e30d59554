"""Start: plan a sandbox, then have the engine start it.

Recorded: the planned sandbox, before there is one; its start, and running time is billed from then on.
Left when killed: a sandbox of a recorded id, which the engine starts once only and the next try finds.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import Builder, next_attempt
from builderd.core.errors import NotFound, ReleaseFailed, StartFailed
from builderd.core.ids import DiskId, new_sandbox_id
from builderd.credentials import service as credentials
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import app_folder
from builderd.events.model import SYSTEM
from builderd.reconciler import record as transitions
from builderd.reconciler.next_step import PlanSandbox
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import SECRETS_FOLDER, Sandbox, SandboxSpec, process_label
from builderd.versions.model import NO_LAYER, Version

#: File with a job's input, among the secret files: no credential has such a name.
STDIN = "_job/stdin"


def plan_sandbox(item: WorkItem, step: PlanSandbox) -> Result:
    def record(transition: Transition) -> None:
        if not transitions.same_generation(transition.builder, item.builder):
            return
        sandbox = new_sandbox(transition.uow, item, item.disk, transition.now)
        transition.uow.sandboxes.add(replace(sandbox, release=step.release, process=step.process, number=step.number))
        if step.release or (step.attempt == 1 and not step.process):
            stage = "release" if step.release else "start"
            uow, builder = transition.uow, transition.builder
            candidates.record(uow, builder, "stage.started", SYSTEM, stage, transition.now, stage=stage)

    return Result(record, durable=False)


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


async def start_sandbox(app: Application, item: WorkItem, sandbox: Sandbox) -> Result:
    try:
        spec = await make_spec(app, item, sandbox)
    except NotFound as lack:
        stage, code = ("release", ReleaseFailed.code) if sandbox.release else ("start", StartFailed.code)
        return transitions.stage_failed(app, item, stage, code, lack.message, since=sandbox.created_at)
    report = await app.engine.sandboxes.start(spec)

    def record(transition: Transition) -> None:
        transitions.sandbox_started(transition, item.version, sandbox, report)
        if report.member != transition.builder.location:
            transition.uow.builders.save(replace(transition.builder, location=report.member))

    # That a release has begun is known after a power cut, too.
    return Result(record, quiet=True, durable=sandbox.release)


async def make_spec(application: Application, item: WorkItem, sandbox: Sandbox) -> SandboxSpec:
    """Return what the engine runs. A trial reaches no network. Raises ``NotFound`` when a credential is gone."""
    builder, names = item.builder, item.version.settings.credentials

    def load(uow: UnitOfWork) -> tuple[credentials.Opened, Sequence[str]]:
        opened = credentials.open_all(uow, application.vault, builder.tenant_id, names) if names else {}
        return opened, [one.host for one in uow.domains.of_builder(builder.id)]

    secrets, domains = await application.store.read(load)
    return build_spec(application, builder, item.version, sandbox, secrets, domains)


def build_spec(
    application: Application,
    builder: Builder,
    version: Version,
    sandbox: Sandbox,
    secrets: credentials.Opened,
    own_domains: Sequence[str] = (),
) -> SandboxSpec:
    """Return what the engine runs of a version with these secrets."""
    settings = version.settings
    command = settings.release if sandbox.release else settings.processes.get(sandbox.process, settings.entrypoint)
    label = process_label(sandbox)
    if settings.root:  # the app may have removed it
        command = f"cd {shlex.quote(app_folder(settings.root))} || exit 1\n{command}"
    stdin = "" if sandbox.release else settings.stdin
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
        hostname=_hostname(builder.name, label),
        entrypoint=f"exec <{SECRETS_FOLDER}/{STDIN}\n{command}" if stdin else command,
        port=settings.port,
        env={**settings.variables, **credentials.as_env(secrets), **platform},
        resources=settings.resources,
        isolation=settings.isolation,
        layer_key=None if version.layer_key == NO_LAYER else version.layer_key,
        egress=not sandbox.trial,
        secret_files={**credentials.as_files(secrets), **({STDIN: stdin} if stdin else {})},
        tenant_id=builder.tenant_id,
        root=settings.root,
        process=label,
    )


#: Most characters of a host name (RFC 1123).
MAX_HOSTNAME = 63


def _hostname(name: str, label: str) -> str:
    """Return the app's name, and of a further process ``app-worker-1``: Celery names its workers by it."""
    end = re.sub(r"[^a-z0-9]+", "-", f"-{label.lower()}") if label else ""
    return name[: MAX_HOSTNAME - len(end)] + end
