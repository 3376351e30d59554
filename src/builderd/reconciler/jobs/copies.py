"""Disposable copies of an app: the same version on a clone of its disk, without a network and with dummy secrets.

A copy that mails, posts or polls would act twice: so it reaches nothing, has no service token and no credential.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, DiskId, SandboxId, new_sandbox_id, new_secret
from builderd.domain.previews import Address
from builderd.domain.sandboxes import LogStream, Sandbox, SandboxReport, SandboxSpec, SandboxUsage
from builderd.domain.versions import NO_LAYER, Protocol, Version
from builderd.ports.testers import Target
from builderd.reconciler.stages.health_check import HealthCheck, wait_until_listening
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: Stands in for every value of every credential.
DUMMY = "dummy-credential-of-a-qa-copy"
#: A copy gets no more of the processors than this, in vCPU: the apps that people visit go first.
MAX_CPU = 1.0
LOG_LINES = 2_000
#: Times what an app has to listen: a copy has less of the processors, and goes last on a busy machine.
START_TIMEOUT_FACTOR = 2.0

log = logging.getLogger(__name__)


class Copy:
    """One copy, on a disk of this name."""

    def __init__(self, application: Application, builder: Builder, version: Version, disk: DiskId) -> None:
        self.builder = builder
        self.version = version
        self._app = application
        self._disk = disk
        #: Its logs are kept apart from those of the app, and go with it.
        self._owner = BuilderId(disk)
        self._sandbox: Sandbox | None = None
        #: CPU time of its ended sandboxes.
        self.cpu_seconds = 0.0
        self._ip: str | None = None

    @property
    def target(self) -> Target:
        """Address of the running copy, with the app's preview URL as the host name."""
        assert self._ip is not None, "it runs"
        address = Address(self._ip, self.version.settings.port)
        h2c = self.version.settings.protocol is Protocol.H2C
        return Target(address, self._app.preview_domain.url(self.builder.host), h2c)

    @property
    def id(self) -> SandboxId:
        """Id of the sandbox that runs now."""
        assert self._sandbox is not None, "it runs"
        return self._sandbox.id

    async def make(self) -> None:
        """Clone the disk as it is at this moment. Raises what the engine raises."""
        size = self.version.settings.resources.disk_bytes
        await self._app.engine.disks.clone_disk(self.builder.disk, self._disk, size)

    async def start(self) -> HealthCheck:
        """Start it, and wait until it listens or does not."""
        now = self._app.clock.now()
        number, generation = self.version.number, self.builder.generation
        sandbox = Sandbox(new_sandbox_id(), self.builder.id, number, generation, 1, now, self._disk)
        self._app.scratch.add(sandbox.id)
        self._sandbox = sandbox
        report = await self._app.engine.sandboxes.start(await self._spec(sandbox.id))
        self._ip = report.ip
        self._sandbox = replace(sandbox, started_at=report.started_at or now)
        settings = self.version.settings
        timeout = START_TIMEOUT_FACTOR * self._app.limits.start_seconds(settings)
        return await wait_until_listening(self._app, self._sandbox, settings.port, timeout)

    async def report(self) -> SandboxReport:
        return await self._app.engine.sandboxes.report(self.id)

    async def usage(self) -> SandboxUsage | None:
        return await self._app.engine.sandboxes.usage(self.id)

    async def lines(self) -> list[str]:
        """Return the last lines that the copy wrote since its present start."""
        page = await self._app.engine.logs.read_log(self.id, tail=LOG_LINES)
        return [line.text for line in page.lines if line.stream is not LogStream.BUILD]

    async def stop(self, grace_seconds: float) -> float:
        """Stop the copy's sandbox; return how many seconds that took."""
        assert self._sandbox is not None, "it was started"
        usage = await self.usage()
        self.cpu_seconds += usage.cpu_seconds if usage is not None else 0.0
        begun = time.monotonic()
        await self._app.engine.sandboxes.stop(self._sandbox.id, grace_seconds)
        seconds = time.monotonic() - begun
        await self._app.engine.sandboxes.remove(self._sandbox.id)
        self._app.scratch.discard(self._sandbox.id)
        self._sandbox = None
        return seconds

    async def remove(self) -> None:
        """Remove the copy's sandbox, disk and logs. Idempotent."""
        if self._sandbox is not None:
            await self.stop(0)
        await remove_disk(self._app, self._disk)

    async def _spec(self, sandbox: SandboxId) -> SandboxSpec:
        builder, settings = self.builder, self.version.settings
        dummies = await self._app.store.read(self._dummies)
        platform = {
            "SERVICE_TOKEN": new_secret("bds"),
            "BUILDER_UUID": builder.id,
            "BUILDER_NAME": builder.name,
            "PREVIEW_URL": self._app.preview_domain.url(builder.host),
            "PORT": str(settings.port),
        }
        return SandboxSpec(
            id=sandbox,
            builder_id=self._owner,
            disk=self._disk,
            hostname=builder.name,
            entrypoint=settings.entrypoint,
            port=settings.port,
            env={**settings.variables, **{name.rpartition("/")[2]: DUMMY for name in dummies}, **platform},
            resources=replace(settings.resources, cpu=min(settings.resources.cpu, MAX_CPU)),
            isolation=settings.isolation,
            layer_key=None if self.version.layer_key == NO_LAYER else self.version.layer_key,
            egress=False,
            secret_files=dict.fromkeys(dummies, DUMMY),
        )

    def _dummies(self, uow: UnitOfWork) -> list[str]:
        """``<credential>/<variable>`` of all that the version asks for."""
        found = (uow.credentials.get(self.builder.tenant_id, name) for name in self.version.settings.credentials)
        return [f"{one.name}/{variable}" for one in found if one is not None for variable in one.variables]


async def remove_disk(application: Application, disk: DiskId) -> None:
    """Remove a copy's disk and logs. Idempotent."""
    await application.engine.disks.delete_disk(disk)
    await application.engine.logs.delete_logs(BuilderId(disk))
