"""A builder that acts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from builderd.client._async.deployments import AsyncDeployment, DeployOptions, OnStage, explained, no_stages, prepare
from builderd.client._async.executions import AsyncTerminal, ExecOptions, execute, open_terminal
from builderd.client._async.files import AsyncFiles
from builderd.client._async.parts import (
    AsyncBuilderBackups,
    AsyncDomains,
    AsyncHeldLease,
    AsyncLeases,
    AsyncPreviewLinks,
    AsyncQaReports,
    AsyncReviews,
)
from builderd.client._async.streams import AsyncCalls, AsyncPages, AsyncStream, rows
from builderd.client._async.streams import follow as follow_stream
from builderd.client._async.transport import AsyncTransport, parsed
from builderd.client._sync.settings import SettingOptions
from builderd.client.errors import NoAnswer, QaFailed, StartFailed, TimedOut
from builderd.client.folders import Folder
from builderd.client.logs import LogCursor
from builderd.client.models import (
    BuilderState,
    Event,
    Execution,
    LogDensity,
    LogLine,
    Metrics,
    PortPreview,
    RemovedBuilds,
    SpendingCap,
    SshGrant,
    Version,
    VersionDiff,
)
from builderd.client.options import EventOptions, RequestPath
from builderd.client.retries import async_sleep

#: Statuses that end a wait: nothing happens by itself any more, or the app runs.
SETTLED = frozenset({"running", "stopped", "completed", "failed", "deleted"})
FINISHED = SETTLED - {"running"}
#: Seconds for which ``check_version`` watches: many apps crash at their first requests, workers after their imports.
WATCH_SECONDS = {"always_on": 1.0, "static": 1.0, "worker": 3.0}
#: Events that begin a version.
BEGINNINGS = ("version.created", "builder.created")


class AsyncBuilder(AsyncCalls):
    """One builder: its state as it was read last (``data``), and what can be done with it.

    Each method that changes it waits for the outcome, and reads ``data`` anew.
    """

    def __init__(self, transport: AsyncTransport, data: BuilderState) -> None:
        super().__init__(transport, "builders", data.uuid)
        self.data = data
        #: Files on its disk.
        self.files = AsyncFiles(transport, *self._base)
        #: Review of its code.
        self.review = AsyncReviews(transport, *self._base, "review")
        #: Checks of whether it works.
        self.qa = AsyncQaReports(transport, *self._base, "qa")
        #: Copies of its files.
        self.backups = AsyncBuilderBackups(transport, *self._base, "backups")
        #: Host names of your own that lead to it.
        self.domains = AsyncDomains(transport, *self._base, "domains")
        #: Leases that keep it busy.
        self.leases = AsyncLeases(transport, *self._base, "leases")
        #: Links that open its private preview, or one of its ports.
        self.preview_links = AsyncPreviewLinks(transport, *self._base, "preview-links")

    def __repr__(self) -> str:
        return f"<Builder {self.name} {self.status} {self.uuid}>"

    # What is known of it

    @property
    def uuid(self) -> str:
        return self.data.uuid

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def status(self) -> str:
        return self.data.status

    @property
    def url(self) -> str:
        """Address of its preview."""
        return self.data.preview_url

    @property
    def version(self) -> int:
        return self.data.version

    @property
    def exit_code(self) -> int | None:
        """Exit code of a job that has ended."""
        return self.data.exit_code

    async def refresh(self) -> AsyncBuilder:
        """Read its state again."""
        return await self._act("GET")

    async def wait(
        self, *, finished: bool = False, on_line: Callable[[LogLine], None] | None = None, interval: float = 1.0
    ) -> AsyncBuilder:
        """Wait until it runs or has ended, with ``finished`` until it has ended, as a job does.

        ``on_line`` gets each line of the log meanwhile. Raises ``TimedOut`` after the client's ``timeout``.
        """
        timeout = self._transport.timeout
        deadline = time.monotonic() + timeout if timeout else None
        cursor, broken = LogCursor(), 0
        while True:
            await self.refresh()
            try:
                # Read after the status: an ended app writes nothing any more.
                read = self.logs(tail=cursor.MOST, since=cursor.since)
                lines = cursor.new_of([line async for line in read]) if on_line else []
                broken = 0
            except NoAnswer:
                broken += 1
                if broken > self._transport.max_retries:
                    raise
                continue
            for line in lines:
                assert on_line
                on_line(line)
            if self.status in (FINISHED if finished else SETTLED):
                return self
            if deadline is not None and time.monotonic() > deadline:
                raise TimedOut(f"{self.name} is {self.status} after {timeout:g} s", builder=self.uuid)
            await async_sleep(interval)

    # Changing it

    async def start(self) -> AsyncBuilder:
        """Start it and wait until it is up."""
        return await self._act("POST", "start", waits=True, repeatable=True)

    async def stop(self) -> AsyncBuilder:
        """Stop it; files and settings are kept."""
        return await self._act("POST", "stop", waits=True, repeatable=True)

    async def restart(self, process: str | None = None) -> AsyncBuilder:
        """Stop it if it runs, and start it; or only one ``process`` of an app that runs, without waiting for it."""
        params = {"process": process} if process else {}
        return await self._act("POST", "restart", params=params, waits=True)

    async def delete(self, *, purge: bool = False) -> None:
        """Delete it with its files; ``purge`` removes its backups too, and takes no last one."""
        params = {"purge": True} if purge else {}
        await self._send("DELETE", params=params, waits=True)

    async def deploy(self, path: str | Path | Folder | None = None, **options: Unpack[DeployOptions]) -> AsyncBuilder:
        """Deploy a new version: a folder, ``files``, or a finished upload. The old one serves until the new one does.

        Settings that are left out stay. ``fresh`` installs the dependencies again.
        """
        call, body = await prepare(self._transport, path, options)
        params = {"fresh": True} if body.pop("fresh", False) else {}
        return self._with(await call.run("PUT", self._path(), body, params))

    async def update(
        self, *, idempotency_key: str | None = None, on_stage: OnStage = no_stages, **options: Unpack[SettingOptions]
    ) -> AsyncBuilder:
        """Change settings: at once where the app need not know of them, else as a new version of the same code."""
        call = AsyncDeployment(self._transport, idempotency_key, on_stage)
        return self._with(await call.run("PATCH", self._path(), dict(options)))

    async def check_version(self, *, strict: bool = True) -> list[str]:
        """Look at a new version a last time, after a second; return notes, such as that its port was found.

        Raises ``DeploymentFailed`` where it does not serve: it ended after its answer, or QA's gate failed. That is a
        note unless ``strict``. A job has only begun.
        """
        number, is_job, restarted = self.version, self.data.job_type == "one_time", ""
        await async_sleep(WATCH_SECONDS.get(self.data.job_type, 0.0))
        data, notes = (await self.refresh()).data, list[str]()
        async for event in self.events(types=",".join((*BEGINNINGS, "builder.restarting", "port.adopted"))):
            if event.type in BEGINNINGS:
                break
            if event.type == "builder.restarting":
                restarted = restarted or event.reason
            else:
                notes.append(event.reason)
        error, about = None, {"uuid": self.uuid, "version": number}
        if data.status not in ("running", "completed" if is_job else "running") or data.version < number:
            error = StartFailed(
                "start_failed", f"It was up, and is {data.status} now: {data.status_reason}.", data=about
            )
        elif restarted:
            error = StartFailed("start_failed", f"It was up, and ended: {restarted}.", data=about)
        elif data.qa_passed is False:
            failed = "\n".join(one.message for one in (await self.qa.get()).gate if one.outcome == "failed")
            if strict:
                raise await explained(self._transport, QaFailed("qa_failed", failed, data=about))
            notes.append(f"QA failed, which require_qa = false permits: {failed}")
        if error is not None:
            raise await explained(self._transport, error)
        return notes

    async def set_auto_stop(self, minutes: int) -> AsyncBuilder:
        """Stop it by itself after so many minutes without use; 0: never."""
        return await self._act("PUT", "auto-stop", json={"interval": minutes})

    def versions(self) -> AsyncPages[Version]:
        """List the versions that are kept, newest first."""
        return self._list(Version, "versions")

    async def diff(self, old: int | None = None, new: int | None = None) -> VersionDiff:
        """Compare the files and settings of two versions.

        By default those of the current version with the one that was up before it.
        """
        old, new = await self._pair(old, new)
        return await self._read(VersionDiff, "GET", "versions", old, "diff", new)

    async def patch(self, old: int | None = None, new: int | None = None) -> str:
        """Return the difference between the files of two versions as a patch, by default as ``diff``."""
        old, new = await self._pair(old, new)
        return (await self._send("GET", "versions", old, "patch", new)).text

    async def _pair(self, old: int | None, new: int | None) -> tuple[int, int]:
        return await self._version_before() if old is None else old, self.data.version if new is None else new

    async def rollback(
        self, version: int | None = None, *, idempotency_key: str | None = None, on_stage: OnStage = no_stages
    ) -> AsyncBuilder:
        """Deploy an old version again, by default the one before the current. What the app wrote stays."""
        number = await self._version_before() if version is None else version
        call = AsyncDeployment(self._transport, idempotency_key, on_stage)
        return self._with(await call.run("POST", self._path("rollback"), {"version": number}))

    async def _version_before(self) -> int:
        async for one in self.versions():
            if one.status == "deployed" and not one.current:
                return one.version
        raise ValueError(f"{self.name} has no earlier version that was up: see versions()")

    async def renew_service_token(self) -> AsyncBuilder:
        """Replace its service token and restart the app with the new one."""
        return await self._act("POST", "service-token", waits=True)

    # Looking into it

    def logs(
        self,
        *,
        follow: bool = False,
        tail: int = 200,
        since: datetime | None = None,
        stream: str | None = None,
        search: str | None = None,
        process: str | None = None,
    ) -> AsyncStream[LogLine]:
        """Iterate over the last lines of its log, with ``follow`` also over each new one until it is deleted.

        ``stream`` is ``stdout``, ``stderr``, ``build`` or ``release``; ``search`` is a text in the lines, in any case.
        ``process`` is one of the app's, such as ``web``, ``worker`` or ``worker.2``.
        """
        params = {"tail": tail, "since": since, "stream": stream, "search": search, "process": process}
        path, read = self._path("logs"), partial(parsed, LogLine)
        look = follow_stream if follow else rows
        return AsyncStream(look(self._transport, path, params, read))

    async def log_density(
        self, *, buckets: int = 60, since: datetime | None = None, stream: str | None = None, search: str | None = None
    ) -> LogDensity:
        """Count the lines of its log over time, as ``logs`` filters them."""
        params = {"buckets": buckets, "since": since, "stream": stream, "search": search}
        return await self._read(LogDensity, "GET", "logs", "density", params=params)

    def events(self, **options: Unpack[EventOptions]) -> AsyncStream[Event]:
        """Iterate over its events, oldest first and for ever, with ``follow``; else over those there are, newest first.

        ``types`` such as ``builder.status,stage.*``; ``after`` is the id of the last event that was seen.
        """
        return events_of(self._transport, self._path("events"), options)

    async def exec(self, command: str, **options: Unpack[ExecOptions]) -> Execution:
        """Run a shell command beside the app and wait for it, at most ``timeout`` seconds (then its exit code is 124).

        ``separate`` keeps its standard error apart, in ``stderr``. ``on_output`` gets each piece of its output as it
        comes, and ``on_errors``, which goes with it, those of its standard error; ``output`` is empty then.
        """
        return await execute(self._transport, self.uuid, command, options)

    def terminal(
        self, command: str | None = None, *, columns: int = 80, rows: int = 24
    ) -> AbstractAsyncContextManager[AsyncTerminal]:
        """Open a terminal with a login shell, or with a command."""
        return open_terminal(self._transport, self.uuid, command, columns, rows)

    async def metrics(self, *, hours: int = 24, step: str = "5m") -> Metrics:
        """Return its present usage, and its usage in steps of ``5m``, ``15m`` or ``1h``."""
        params = {"hours": hours, "step": step}
        return await self._read(Metrics, "GET", "metrics", params=params)

    async def port_url(self, port: int) -> str:
        """Return the URL of one of its ports, which wants the service token or a link."""
        return (await self._read(PortPreview, "GET", "ports", port, "preview-url")).url

    def lease(self, seconds: int = 600, reason: str = "") -> AsyncHeldLease:
        """Keep it from being frozen or stopped for idleness during a ``with`` block, at most ``seconds``."""
        return AsyncHeldLease(self.leases, seconds, reason)

    # Access and costs

    async def ssh(self, *, expires_minutes: int = 60, alone: bool = False) -> SshGrant:
        """Make a token for logins by SSH; ``alone`` ends all others."""
        path = ("ssh", "recreate") if alone else ("ssh",)
        return await self._read(SshGrant, "POST", *path, json={"expires_minutes": expires_minutes})

    async def end_ssh(self) -> None:
        """End all its SSH tokens, and cut their sessions."""
        await self._send("DELETE", "ssh")

    async def clear_build_cache(self) -> RemovedBuilds:
        """Remove the kept results of its builds; rolling back builds again."""
        return await self._read(RemovedBuilds, "DELETE", "build-cache")

    async def cap(self) -> SpendingCap:
        """Return its monthly spending cap, and what it has cost this month."""
        return await self._read(SpendingCap, "GET", "spending-cap")

    async def set_cap(self, monthly: float | None) -> SpendingCap:
        """Set its monthly cap; None lifts it, but not the operator's. Needs the scope ``admin``."""
        return await self._read(SpendingCap, "PUT", "spending-cap", json={"monthly": monthly})

    async def _act(self, method: str, *segments: str, **options: Any) -> AsyncBuilder:
        return self._with(await self._read(BuilderState, method, *segments, **options))

    def _with(self, data: BuilderState) -> AsyncBuilder:
        self.data = data
        return self


def events_of(transport: AsyncTransport, path: RequestPath, options: EventOptions) -> AsyncStream[Event]:
    """Return a stream of events, or the list of those there are."""
    params = {"type": options.get("types"), "since": options.get("since")}
    if not options.get("follow"):
        return AsyncStream(AsyncPages(transport, path, partial(parsed, Event), params).__aiter__())
    after = options.get("after")
    last_id = str(after) if after is not None else ""
    entries = follow_stream(transport, path, params, partial(parsed, Event), last_id=last_id, keep_start=True)
    return AsyncStream(entries)
