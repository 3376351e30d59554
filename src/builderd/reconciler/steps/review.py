"""Review: judge a version's code before anything of it runs.

Recorded: the verdict, the stage's end, and a version that does not pass as failed.
Left when killed: at most the stored verdict of the same files, which the next try takes.
"""

from __future__ import annotations

from builderd.application import Application
from builderd.events.model import SYSTEM
from builderd.reconciler import record as transitions
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.review import verdicts
from builderd.review.model import Report, ReviewFailed, summary
from builderd.versions.model import Version


async def review(app: Application, item: WorkItem) -> Result:
    begun = app.clock.now()
    report, reused = await verdicts.report_of(app, item.builder.tenant_id, item.version)
    seconds = (app.clock.now() - begun).total_seconds()

    def record(transition: Transition) -> None:
        if transitions.still_wanted(transition.builder, item.builder, item.version):
            _reviewed(transition, item.version, report, seconds=seconds, reused=reused)

    return Result(record)


def _reviewed(transition: Transition, version: Version, report: Report, *, seconds: float, reused: bool) -> None:
    """The review has judged the version; what does not pass fails with it."""
    verdict = verdicts.record(transition.uow, transition.builder, version.number, report, SYSTEM, transition.now)
    note = "passed" if verdict.passed else summary(verdict)
    transitions.stage_finished(transition, "review", seconds=seconds, ok=verdict.passed, note=note, reused=reused)
    if not verdict.passed:
        transitions.failed(transition, version, code=ReviewFailed.code, reason=note)
