"""A sandbox's start: its preparation, its health check, and the handover from one version to another.

During a handover visitors' requests are paused, for 30 seconds at most. In these the old version finishes what it was
asked and ends, the new one starts, and should it not come up, the old one starts again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from builderd.application import Application
from builderd.builders.model import next_attempt
from builderd.code import service as bundles
from builderd.code.model import Bundle
from builderd.core.ids import DiskId, new_sandbox_id
from builderd.credentials import service as credentials
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import app_folder
from builderd.qa.model import WORKER_ALIVE_SECONDS
from builderd.reconciler.failures import listens_elsewhere
from builderd.reconciler.observe import WorkItem
from builderd.sandboxes.model import SECRETS_FOLDER, Listening, Sandbox, SandboxReport, SandboxSpec
from builderd.tokens.limits import StartLimit
from builderd.versions.model import NO_BUILD, NO_LAYER

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
    command = settings.release if sandbox.release else settings.entrypoint
    if settings.root:  # the app may have removed it
        command = f"cd {shlex.quote(app_folder(settings.root))} || exit 1\n{command}"
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


async def put_bundle(application: Application, item: WorkItem, disk: DiskId) -> None:
    """Bring the version's files onto a disk that may have another version's, and what the app made of them."""
    bundle = await bundles.fetch(application, item.version)
    report = await application.engine.disks.disk(disk)
    # What is on the disk: what it says itself, else what its builder's current version has.
    known = report.bundle_hash if report else None
    if known is None and item.current is not None:
        known = item.current.bundle_hash
    before: Bundle | None = None
    if known is not None:
        with suppress(KeyError):
            before = await application.bundles.get(known)
    await application.engine.disks.put_bundle(disk, bundle, before, item.version.build_key or NO_BUILD)


#: Seconds for an app that listens only on an unreachable address to open its port as well.
ELSEWHERE_GRACE = 5.0
#: Pause between two looks at the port: this part of the time since the start, and the bounds in seconds.
PAUSE_SHARE, FIRST_PAUSE, LAST_PAUSE = 0.02, 0.002, 0.1
#: Seconds between two questions to the engine for the sandbox's state and for what listens elsewhere: a question takes
#: ten times the CPU time of a look at the port.
REPORT_INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Outcome: ``reachable``, or else the report of an app that ``ended``, or else it listens at ``listening``."""

    reachable: bool
    listening: Listening
    ended: SandboxReport | None
    seconds: float


async def wait_until_up(application: Application, item: WorkItem, sandbox: Sandbox, timeout: float) -> HealthCheck:
    """Look until the app can be reached or the worker has lived long enough, the sandbox ends, or the time is over."""
    if item.builder.job_type.must_listen:
        return await wait_until_listening(application, sandbox, item.version.settings.port, timeout)
    lifetime = WORKER_ALIVE_SECONDS if item.builder.job_type.is_judged else 0.0
    life = _limit(application, sandbox, lifetime)
    while True:
        report = await application.engine.sandboxes.report(sandbox.id)
        if not report.alive or life.left <= 0:
            return HealthCheck(report.alive, Listening(frozenset()), None if report.alive else report, life.seconds)
        await application.clock.sleep(min(LAST_PAUSE, lifetime / 4))


async def wait_until_listening(application: Application, sandbox: Sandbox, port: int, timeout: float) -> HealthCheck:
    """Look until the port can be reached, the sandbox ends, or the time is over.

    Counted from the start of the sandbox, so that a wait that was broken off continues where it was.
    """
    limit, next_report = _limit(application, sandbox, timeout), 0.0
    elsewhere: StartLimit | None = None
    with application.engine.sandboxes.watch_port(sandbox.id) as may_listen:
        while True:
            asks = limit.seconds >= next_report
            if asks or may_listen():
                listening = await application.engine.sandboxes.listening(sandbox.id)
            if listening.reachable(port):
                return HealthCheck(True, listening, None, limit.seconds)
            if asks:
                report = await application.engine.sandboxes.report(sandbox.id)
                if not report.alive:
                    return HealthCheck(False, listening, report, limit.seconds)
                next_report = limit.seconds + REPORT_INTERVAL
            if not listens_elsewhere(listening, port):
                elsewhere = None
            elif elsewhere is None:
                elsewhere = StartLimit(application.engine, application.clock, ELSEWHERE_GRACE)
            if limit.left <= 0 or (elsewhere is not None and elsewhere.left <= 0):
                return HealthCheck(False, listening, None, limit.seconds)
            pause = min(max(PAUSE_SHARE * limit.seconds, FIRST_PAUSE), LAST_PAUSE)
            await application.clock.sleep(pause)


def _limit(application: Application, sandbox: Sandbox, timeout: float) -> StartLimit:
    now = application.clock.now()
    before = (now - (sandbox.started_at or now)).total_seconds()
    return StartLimit(application.engine, application.clock, timeout, before)


#: Seconds for the old version's open requests to finish, then seconds for the old version itself to end.
DRAIN_TIMEOUT, GRACE = 10.0, 5.0
#: Least seconds for the old version to end, however long its requests took.
LEAST_GRACE = 1.0
#: How often they are counted, in seconds.
DRAIN_INTERVAL = 0.005
#: What is left of a visitor's time once the old version has ended, with some to spare, in seconds.
LEFT = 18.0
#: Least seconds for a new version to listen.
MIN_HANDOVER_SECONDS = 5.0


async def drained(application: Application, host: str) -> float:
    """Wait until the app has answered the requests that came before new ones were paused.

    Return how many seconds that took, about ``DRAIN_TIMEOUT`` at most.
    """
    clock = application.clock
    begun, seconds = clock.passed(), 0.0
    while seconds < DRAIN_TIMEOUT and await application.previews.open_requests(host):
        await clock.sleep(DRAIN_INTERVAL)
        seconds = clock.passed() - begun
    return seconds


def grace(usual: float, drained_for: float) -> float:
    """Return how long the old version may take to end, in seconds, less the time its last requests took."""
    return min(usual, max(GRACE - drained_for, LEAST_GRACE))


def time_limit(trial: Sandbox | None, old: Sandbox | None, usual: float, longest: float) -> float:
    """Return how long a version that takes over may take to listen: the timeout of its start, in seconds.

    The time covers the visitors' wait for it and, should it fail, for the old version's restart. A version that was
    too slow for that on trial gets ``longest``, the full start timeout, and visitors see a page that says it starts.
    One whose trial did not listen, for lack of a network or on a busy machine, counts as slow as its predecessor.
    """
    before = _startup_seconds(old)
    allowed = min(usual, max(LEFT - (before or 0.0), MIN_HANDOVER_SECONDS), longest)
    startup = _startup_seconds(trial)
    if startup is None:
        startup = before
    return longest if startup is not None and startup > allowed / 2 else allowed


def _startup_seconds(sandbox: Sandbox | None) -> float | None:
    if sandbox is None or sandbox.listening_at is None or sandbox.started_at is None:
        return None
    return (sandbox.listening_at - sandbox.started_at).total_seconds()
