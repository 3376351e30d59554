"""Candidate versions: the steps that prepare a new version while the current one serves.

The reconciler calls ``candidate_step`` when ``next_step`` has nothing to do, so the serving version comes first. After
the handover the candidate is the version to run, and ``next_step`` does the rest.
"""

from __future__ import annotations

from builderd.domain.builders import Builder, Desired
from builderd.domain.next_step import prepare
from builderd.domain.steps import DropDisks, EndTrial, HandOver, Observation, PlanTrial, Step, TryCandidate


def candidate_step(builder: Builder, seen: Observation) -> Step | None:
    """Return the next step for the candidate version, or None."""
    if builder.desired is Desired.DELETED:
        return None
    if seen.trial is not None and seen.trial.version != builder.candidate_version:
        return EndTrial()
    if builder.spare_disks:
        return DropDisks()
    if seen.candidate is None or builder.handover is not None:
        return None
    return prepare(seen.candidate) or _try(builder, seen) or HandOver()


def _try(builder: Builder, seen: Observation) -> Step | None:
    """Return the trial's next step: it keeps a version that cannot start from interrupting the app that serves.

    Jobs have no trial, since they would do their work twice, nor have sandboxes, which start nothing, nor has a
    restored disk, whose version ran on it before. A version with a release command has none either: it may not start
    before that has run, which runs once, on its own disk.
    """
    assert seen.candidate is not None, "the caller checked it"
    has_trial = builder.job_type.stays_up and builder.job_type.is_judged and not seen.candidate.release_due
    is_restored = builder.candidate is not None and builder.candidate.disk is not None
    if not has_trial or seen.sandbox is None or is_restored:
        return EndTrial() if seen.trial is not None else None
    return PlanTrial() if seen.trial is None else TryCandidate()
