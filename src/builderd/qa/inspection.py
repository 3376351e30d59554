"""Inspection of an app for a QA report, on a copy: the same version on a clone of its disk.

A copy has no network and dummy secrets: one that mails, posts or polls would act twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from builderd.application import Application
from builderd.builders.model import Builder
from builderd.core.errors import InvalidState
from builderd.core.ids import BuilderId, DiskId, SandboxId, new_sandbox_id, new_secret
from builderd.credentials import service as credentials
from builderd.database.unit_of_work import UnitOfWork
from builderd.executions import service as executions
from builderd.executions.service import Command
from builderd.previews.model import Address
from builderd.qa.model import (
    GATE_PATH,
    GATE_TIMEOUT,
    TERM_SECONDS,
    Check,
    CheckName,
    FileState,
    Outcome,
    Screenshot,
    as_not_judged,
    check_files,
    check_idle,
    check_log,
    check_memory_use,
    check_term,
    in_order,
    is_out_of_reach,
)
from builderd.qa.port import Target
from builderd.reconciler.failures import SHOWN_LINES, describe_end, not_listening, quoted
from builderd.reconciler.steps.await_listening import HealthCheck, wait_until_listening
from builderd.reconciler.steps.start import build_spec
from builderd.sandboxes.model import LogStream, Sandbox, SandboxReport, SandboxSpec, SandboxUsage
from builderd.versions.model import Protocol, Version

#: Seconds that an app is watched without requests, and the pause before.
IDLE_SECONDS, CALM_SECONDS = 1.0, 0.5
#: How long the files may take to be read, and how long a list of them may be in bytes.
FILES_SECONDS, FILES_BYTES = 15.0, 4_000_000
#: Every file in /app but large ones, as JSON: path → [size, sha256]. Links are not followed.
FILES = """/usr/bin/python3 -I -S - <<'END'
import hashlib, json, os
seen, total = {}, 0
for folder, folders, names in os.walk("/app"):
    folders[:] = [f for f in folders if f not in ("node_modules", "__pycache__", ".git", ".cache")]
    for name in names:
        path = os.path.join(folder, name)
        try:
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            size = os.stat(path).st_size
            if size > 20_000_000 or total + size > 300_000_000 or len(seen) >= 5000:
                continue
            total += size
            with open(path, "rb") as file:
                seen[os.path.relpath(path, "/app")] = [size, hashlib.sha256(file.read()).hexdigest()]
        except OSError:
            pass
print(json.dumps(seen))
END"""
#: Counts, of this sandbox's own network, answers that say that something cannot be reached.
NETWORK = "/bin/cat /proc/net/snmp"


class Inspection:
    """Inspection of a copy whose disk exists. ``gate_passed``: the app itself passed its gate.

    ``checks`` and ``screenshots`` are the content of the report once it has run.
    """

    def __init__(self, application: Application, copy: Copy, *, gate_passed: bool) -> None:
        self._app = application
        self._copy = copy
        self._gate_passed = gate_passed
        self.checks: list[Check] = []
        self.screenshots: tuple[Screenshot, ...] = ()
        self._reached_out = False

    async def run(self) -> None:
        """Run all checks of the report. Raises the engine's errors."""
        wait = await self._copy.start()
        self.checks.append(await self._started(wait, CheckName.COPY, "The copy"))
        if wait.reachable:
            await self._ask()
            await self._judge_afterwards()
        elif wait.ended is None:
            await self._look_for_network()
        await self._restart(was_up=wait.reachable)
        self.checks = [*in_order([self._as_not_judged(check) for check in self.checks])]

    async def _started(self, wait: HealthCheck, name: CheckName, who: str) -> Check:
        settings = self._copy.version.settings
        if wait.reachable:
            return Check(name, Outcome.PASSED, f"{who} listened after {wait.seconds:.2f} s.", wait.seconds)
        lines = (await self._copy.lines())[-SHOWN_LINES:]
        self._reached_out |= any(is_out_of_reach(line) for line in lines)
        if wait.ended is not None and wait.ended.end is not None:
            how = describe_end(wait.ended.end, settings.resources)
            message = f"{who} ended before it listened: {how}." + quoted(lines)
        else:
            message = f"{who}: {not_listening(wait.listening, settings.port, wait.seconds, lines)}"
        return Check(name, Outcome.FAILED, message, wait.seconds)

    async def _ask(self) -> None:
        target, testers = self._copy.target, self._app.testers
        # Some servers listen before their workers can answer; what is measured in the following is not that.
        await testers.visit(target, GATE_PATH, GATE_TIMEOUT)
        if target.h2c:
            return  # pages, links and documents are of HTTP/1
        self.checks += await testers.crawl(target)
        browsing = await testers.browse(target)
        self.checks += browsing.checks
        self.screenshots = tuple(browsing.screenshots)
        self.checks += await testers.probe(target)

    async def _judge_afterwards(self) -> None:
        """Judge the log, the idle app and that it still runs after all these requests."""
        lines = await self._copy.lines()
        self._reached_out |= any(is_out_of_reach(line) for line in lines)
        self.checks.append(check_log(lines))
        await self._look_for_network()
        await self._measure()
        report, resources = await self._copy.report(), self._copy.version.settings.resources
        outcome, message = Outcome.FAILED, "The app was up at the end, and nothing of it was killed."
        if not report.alive:
            how = describe_end(report.end, resources) if report.end else "it is gone"
            message = f"The app ended while it was looked at: {how}." + quoted(lines)
        elif report.out_of_memory:
            message = f"The kernel killed a process of the app: out of memory, limit {resources.memory:g} GB."
            message += quoted(lines)
        else:
            outcome = Outcome.PASSED
        self.checks.append(Check(CheckName.STAYS_UP, outcome, message))

    async def _look_for_network(self) -> None:
        """Note whether the app tried to reach a network, which a copy may not.

        ``Icmp: InDestUnreachs`` (RFC 4293) is in a table of the kernel: a line of names, and one of numbers.
        """
        said = await self._execute(NETWORK, 20_000)
        lines = [line.split() for line in said.splitlines() if line.startswith("Icmp:")]
        numbers = dict(zip(lines[0], lines[1], strict=False)) if len(lines) > 1 else {}
        self._reached_out |= numbers.get("InDestUnreachs", "0") not in ("0", "")

    async def _measure(self) -> None:
        await self._app.clock.sleep(CALM_SECONDS)
        before = await self._copy.usage()
        begun = self._app.clock.now()
        await self._app.clock.sleep(IDLE_SECONDS)
        after = await self._copy.usage()
        if before is None or after is None:
            return
        seconds = (self._app.clock.now() - begun).total_seconds()
        self.checks.append(check_idle(after.cpu_seconds - before.cpu_seconds, seconds))
        limit = self._copy.version.settings.resources.memory_bytes
        self.checks.append(check_memory_use(after.memory_bytes, limit))

    async def _restart(self, *, was_up: bool) -> None:
        """Stop it as every stop does, and start it again on the same disk."""
        before = await self._files()
        runs = (await self._copy.report()).alive
        seconds = await self._copy.stop(TERM_SECONDS)
        if not was_up:
            return  # it would not come up this time either
        if runs:
            self.checks.append(check_term(seconds))
        else:
            message = "The app had ended by itself before it could be asked to."
            self.checks.append(Check(CheckName.SIGTERM, Outcome.NOT_JUDGED, message))
        wait = await self._copy.start()
        self.checks.append(await self._started(wait, CheckName.RESTART, "Started again, the app"))
        after = await self._files()
        if before is None or after is None:
            message = "The app did not run when its files were to be looked at."
            self.checks.append(Check(CheckName.FILES, Outcome.NOT_JUDGED, message))
        else:
            self.checks.append(check_files(before, after))

    async def _files(self) -> Mapping[str, FileState] | None:
        """Return size and hash of the copy's files by path, read inside its sandbox; None where it does not run."""
        try:
            listed = json.loads(await self._execute(FILES, FILES_BYTES, FILES_SECONDS))
            return {str(path): FileState(int(size), str(digest)) for path, (size, digest) in listed.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    async def _execute(self, command: str, limit_bytes: int, seconds: float = 5.0) -> str:
        try:
            done = await executions.capture(
                self._app.engine.sandboxes, self._copy.id, Command(command, seconds), limit_bytes
            )
        except InvalidState:
            return ""
        return done.output

    def _as_not_judged(self, check: Check) -> Check:
        """Excuse a failure that a copy's lack of network or credentials may explain, if the app passed its gate."""
        if not self._gate_passed:
            return check
        if self._reached_out:
            return as_not_judged(check, "the app tried to reach a network, which a copy may not.")
        if self._copy.version.settings.credentials:
            return as_not_judged(check, "the app asks for credentials, of which a copy has dummies only.")
        return check


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
        address = Address(self._ip, self.version.port)
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
        report = await self._app.engine.sandboxes.start(await self._spec(sandbox))
        self._ip = report.ip
        self._sandbox = replace(sandbox, started_at=report.started_at or now)
        settings = self.version.settings
        timeout = START_TIMEOUT_FACTOR * self._app.limits.start_seconds(settings)
        wait = await wait_until_listening(self._app, self._sandbox, self.version, timeout)
        self.version = replace(self.version, adopted_port=wait.port or self.version.adopted_port)
        return wait

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

    async def _spec(self, sandbox: Sandbox) -> SandboxSpec:
        """Return what the app runs with, but for its secrets and the network, and with less of the processors."""
        settings, tenant_id = self.version.settings, self.builder.tenant_id

        def load(uow: UnitOfWork) -> credentials.Opened:
            found = (uow.credentials.get(tenant_id, name) for name in settings.credentials)
            return {one.name: dict.fromkeys(one.variables, DUMMY) for one in found if one is not None}

        dummies = await self._app.store.read(load)
        builder = replace(self.builder, service_token=new_secret("bds"))
        spec = build_spec(self._app, builder, self.version, sandbox, dummies)
        resources = replace(settings.resources, cpu=min(settings.resources.cpu, MAX_CPU))
        return replace(spec, builder_id=self._owner, resources=resources, egress=False, tenant_id="")


async def remove_disk(application: Application, disk: DiskId) -> None:
    """Remove a copy's disk and logs. Idempotent."""
    await application.engine.disks.delete_disk(disk)
    await application.engine.logs.delete_logs(BuilderId(disk))
