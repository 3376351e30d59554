"""Candidates: how a version is brought up to the point where it takes over from the one that serves.

The reconciler asks ``candidate_step`` whenever ``next_step`` has nothing to do, so the version that serves always
comes first. When the candidate takes over it becomes the version that is to run, and ``next_step`` does the rest.
"""

from __future__ import annotations

from builderd.domain.builders import Builder, Desired, JobType
from builderd.domain.next_step import prepare
from builderd.domain.steps import DropDisks, EndTrial, HandOver, Observed, PlanTrial, Step, TryCandidate


def candidate_step(builder: Builder, seen: Observed) -> Step | None:
    """The one step to be done beside what is wanted of the builder, or None."""
    if builder.desired is Desired.DELETED:
        return None
    if seen.trial is not None and seen.trial.version != builder.candidate:
        return EndTrial()
    if builder.spare_disks:
        return DropDisks()
    if seen.candidate is None or builder.handover is not None:
        return None
    return prepare(seen.candidate) or _try(builder, seen) or HandOver()


def _try(builder: Builder, seen: Observed) -> Step | None:
    """A trial spares an app that serves the interruption by a version that does not even start.

    A job has none, since it would do its work twice; nor has a version for a disk that was made elsewhere, whose data
    ran under it before.
    """
    if builder.job_type is JobType.ONE_TIME or seen.sandbox is None or builder.candidate_disk is not None:
        return EndTrial() if seen.trial is not None else None
    return PlanTrial() if seen.trial is None else TryCandidate()
