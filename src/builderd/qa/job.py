"""Reporting: QA reports are made in the background, one at a time, once the call that deployed was answered.

Tenants take turns: one that deploys many apps does not keep others from their reports. The newest report of a tenant
comes first. After each, the worker rests until reports have taken no more than ``SHARE`` of the machine's CPU time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from builderd.application import Application
from builderd.builders.model import Builder, Desired
from builderd.core.errors import BuilderdError, QuotaExceeded
from builderd.core.ids import BuilderId, DiskId, TenantId, new_id
from builderd.core.loops import FaultPoint, race
from builderd.database.unit_of_work import UnitOfWork
from builderd.linux.processes import children_seconds
from builderd.money import caps
from builderd.qa.inspection import Copy, Inspection, remove_disk
from builderd.qa.model import MAX_ATTEMPTS, QaReport, ReportStatus
from builderd.reconciler.builds import BuildCharges
from builderd.versions.model import Version

#: Seconds between checks for wanted reports without a request, and after an error.
INTERVAL = 5.0
#: Seconds between a request and the look.
LEAST_INTERVAL = 0.1
#: Seconds between two checks whether the report is still needed.
OVERTAKEN_INTERVAL = 0.5
#: No report takes longer; what it had found by then is lost.
REPORT_SECONDS = 420.0
#: Part of the CPU time of all CPUs that reports take at most, counted over a report and the rest after it.
SHARE = 1 / 3
#: Reports of one tenant that wait; the oldest beyond are dropped.
MOST_OF_TENANT = 20
CUT_OFF = "The service ended while the report was made, more than once."
TOO_MANY = (
    f"Newer reports were waiting, {MOST_OF_TENANT} of this tenant, as many as may: ask for this one again with "
    "POST /api/v1/builders/{uuid}/qa."
)
OVERTAKEN = "The builder was deleted, or another version took its place, before the report was made."

log = logging.getLogger(__name__)

#: Takes the stored report and returns the one to store.
_Change = Callable[[UnitOfWork, QaReport], QaReport]


class Reporting:
    """Background maker of QA reports. ``request_report`` it when a report may be wanted."""

    def __init__(self, application: Application, fault: FaultPoint) -> None:
        self._app = application
        self._fault = fault
        self._charges = BuildCharges(application)
        self._again = asyncio.Event()
        #: Number of the latest report of each tenant, counted over all: the one served longest ago is next.
        self._served: dict[TenantId, int] = {}
        self._count = itertools.count(1)

    def request_report(self) -> None:
        """Make the worker look for wanted reports now."""
        self._again.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._again.clear()
            try:
                is_any = await self._remove_leftovers()
                while is_any and await self._one():
                    pass
            except Exception:
                log.warning("QA report failed, retrying in 5 s", exc_info=True)
                await asyncio.sleep(INTERVAL)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), INTERVAL)
                # It is asked at each outcome, for which a caller waits: the caller goes first.
                await asyncio.sleep(LEAST_INTERVAL)

    async def _remove_leftovers(self) -> bool:
        """Remove the copies of reports that a previous process of this instance left; return True if any is open."""
        unfinished = await self._app.store.read(lambda uow: uow.qa_reports.unfinished())
        for report in unfinished:
            if report.owner == self._app.instance and report.copy_disk is not None:
                await remove_disk(self._app, report.copy_disk)
                await self._copy_removed(report.builder_id, report.version)
        return bool(unfinished)

    async def _one(self) -> bool:
        """Make the newest report of the tenant served longest ago; return False when none waits."""
        taken = await self._app.store.write(self._take)
        if taken is None:
            return False
        report, builder, version = taken
        self._fault("Report.recorded")
        assert report.copy_disk is not None, "a report that is made has a copy"
        copy = Copy(self._app, builder, version, report.copy_disk)
        begun, before = self._app.clock.passed(), children_seconds()
        try:
            await self._make(report, copy)
        finally:
            await copy.remove()
            await self._copy_removed(builder.id, version.number)
        used = children_seconds() - before + copy.cpu_seconds
        await self._app.clock.sleep(rest_seconds(used, self._app.clock.passed() - begun, os.cpu_count() or 1))
        return True

    def _take(self, uow: UnitOfWork) -> tuple[QaReport, Builder, Version] | None:
        for report in self._in_turn(uow):
            builder = uow.builders.get(report.builder_id, lock=True)
            version = uow.versions.get(report.builder_id, report.version)
            assert builder is not None
            assert version is not None, "a report is of a version that is stored"
            taken = self._decide(uow, builder, report)
            if taken is None:
                continue
            uow.qa_reports.save(taken)
            if taken.status is ReportStatus.RUNNING:
                self._served[builder.tenant_id] = next(self._count)
                return taken, builder, version
        return None

    def _in_turn(self, uow: UnitOfWork) -> Sequence[QaReport]:
        """Return the open reports that are not made elsewhere, of each tenant so many as may wait.

        The tenant that was served longest ago comes first, the newest report of a tenant first. The rest is dropped.
        """
        waiting: defaultdict[TenantId, list[QaReport]] = defaultdict(list)
        for report in uow.qa_reports.unfinished():
            elsewhere = report.status is ReportStatus.RUNNING and report.owner != self._app.instance
            if elsewhere or not report.is_open:
                continue
            builder = uow.builders.get(report.builder_id)
            assert builder is not None, "a report is of a builder that is stored"
            waiting[builder.tenant_id].append(report)
        for reports in waiting.values():
            for report in reports[:-MOST_OF_TENANT]:
                uow.builders.get(report.builder_id, lock=True)
                uow.qa_reports.save(_dropped(report, TOO_MANY, self._app.clock.now()))
        tenants = sorted(waiting, key=lambda tenant: self._served.get(tenant, 0))
        return [report for tenant in tenants for report in reversed(waiting[tenant][-MOST_OF_TENANT:])]

    def _decide(self, uow: UnitOfWork, builder: Builder, report: QaReport) -> QaReport | None:
        """Return a pending report as it is to be stored: dropped, or running here; None: leave it pending."""
        now = self._app.clock.now()
        if why := self._obstacle(uow, builder, report):
            return _dropped(report, why, now)
        if report.attempts >= MAX_ATTEMPTS:
            return _dropped(report, CUT_OFF, now)
        if not builder.settled or builder.version != report.version:
            return None  # the call that waits for it goes first
        return replace(
            report,
            status=ReportStatus.RUNNING,
            owner=self._app.instance,
            attempts=report.attempts + 1,
            started_at=now,
            copy_disk=DiskId(new_id()),
        )

    async def _make(self, report: QaReport, copy: Copy) -> None:
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                found = await race(self._inspect(copy), self._obstructed(report))
        except TimeoutError:
            await self._drop(report, f"It was not made within {REPORT_SECONDS:g} seconds.")
        except BuilderdError as error:
            await self._drop(report, error.message)
        else:
            await (self._drop(report, found) if isinstance(found, str) else self._keep(report, found))

    async def _inspect(self, copy: Copy) -> Inspection:
        await copy.make()
        inspection = Inspection(self._app, copy, gate_passed=copy.version.qa_passed is True)

        async def run() -> None:
            self._fault("Report.begun")
            await inspection.run()
            self._fault("Report.done")

        await self._charges.charged(copy.builder, run)
        return inspection

    async def _obstructed(self, report: QaReport) -> str:
        """Return the reason once the report is not to be made."""
        while True:
            await asyncio.sleep(OVERTAKEN_INTERVAL)
            why = await self._app.store.read(
                lambda uow: self._obstacle(uow, uow.builders.get(report.builder_id), report)
            )
            if why:
                return why

    def _obstacle(self, uow: UnitOfWork, builder: Builder | None, report: QaReport) -> str | None:
        """Return why the report is not to be made: nobody needs it, or a spending cap is reached."""
        versions = (builder.version, builder.candidate_version) if builder is not None else ()
        if builder is None or builder.desired is Desired.DELETED or report.version not in versions:
            return OVERTAKEN
        try:
            caps.check(uow, self._app, builder.tenant_id, builder, self._app.clock.now())
        except QuotaExceeded as reached:
            return reached.message
        return None

    async def _keep(self, report: QaReport, found: Inspection) -> None:
        def record(uow: UnitOfWork, now: QaReport) -> QaReport:
            uow.qa_reports.put_screenshots(now.builder_id, now.version, found.screenshots)
            names = tuple(picture.name for picture in found.screenshots)
            done = replace(now, status=ReportStatus.DONE, checks=tuple(found.checks), screenshots=names, note="")
            return replace(done, finished_at=self._app.clock.now())

        await self._change(report.builder_id, report.version, record)

    async def _drop(self, report: QaReport, why: str) -> None:
        at = self._app.clock.now()
        await self._change(report.builder_id, report.version, lambda _, now: _dropped(now, why, at))

    async def _copy_removed(self, builder_id: BuilderId, version: int) -> None:
        await self._change(builder_id, version, lambda _, now: replace(now, copy_disk=None))

    async def _change(self, builder_id: BuilderId, version: int, change: _Change) -> None:
        """Save the changed report, or delete a deleted builder's reports, and signal the change."""

        def record(uow: UnitOfWork) -> None:
            builder = uow.builders.get(builder_id, lock=True)
            report = uow.qa_reports.get(builder_id, version)
            if builder is None or report is None:
                return
            uow.qa_reports.save(change(uow, report))
            if builder.deleted_at is not None:
                uow.qa_reports.delete(builder_id)

        await self._app.store.write(record)
        self._app.signals.change(builder_id)


def rest_seconds(used: float, seconds: float, cpus: int) -> float:
    """Return how long to rest after a report that took ``used`` seconds of CPU time in ``seconds``."""
    return max(0.0, used / (SHARE * cpus) - seconds)


def _dropped(report: QaReport, why: str, now: datetime) -> QaReport:
    return replace(report, status=ReportStatus.DROPPED, note=why, finished_at=now)
