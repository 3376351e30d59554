"""One look at a builder: what is recorded, and what the engine and the preview show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, DiskId
from builderd.domain.prices import Billing
from builderd.domain.sandboxes import Sandbox
from builderd.domain.steps import Observed, VersionState
from builderd.domain.versions import NO_LAYER, Version
from builderd.ports.store import UnitOfWork
from builderd.services import backups
from builderd.services.application import Application


@dataclass(frozen=True, slots=True)
class Subject:
    """A builder under work, as it was read: with the version that is to run, and the one prepared beside it.

    ``current`` is the builder's current version where another one is in question.
    """

    builder: Builder
    version: Version
    candidate: Version | None = None
    current: Version | None = None

    @property
    def disk(self) -> DiskId:
        """Where the version that is to run keeps its files."""
        return self.builder.to_run[1]

    @property
    def beside(self) -> Subject:
        """The same with the candidate as the version in question."""
        assert self.candidate is not None, "the step was chosen because there is one"
        return replace(self, version=self.candidate, current=self.version)

    def of(self, number: int) -> Subject:
        """The same with this one of its versions as the one in question."""
        return self if self.version.number == number else self.beside


class Known(NamedTuple):
    """What is recorded of a builder. ``billing`` is of the segment of the ledger that is open."""

    subject: Subject
    sandbox: Sandbox | None
    trial: Sandbox | None
    ends: tuple[Sandbox, ...]
    billing: Billing | None


def read(uow: UnitOfWork, builder_id: BuilderId) -> Known | None:
    """What is recorded now; None when the builder is unknown."""
    builder = uow.builders.get(builder_id)
    if builder is None:
        return None
    number, _ = builder.to_run
    version = uow.versions.get(builder_id, number)
    assert version is not None, "a builder's versions are always stored"
    beside = builder.candidate if builder.candidate != number else None
    candidate = uow.versions.get(builder_id, beside) if beside is not None else None
    # In one query: this is read at every step of every builder.
    sandboxes = uow.sandboxes.open_or_of_run(builder_id, builder.run)
    ends = tuple(one for one in sandboxes if one.end and not one.trial)
    current = uow.versions.get(builder_id, builder.version) if builder.version != number else None
    subject = Subject(builder, version, candidate, current)
    going_on = [one for one in sandboxes if one.end is None]
    open_one, trial = (next((one for one in going_on if one.trial is is_trial), None) for is_trial in (False, True))
    paid = uow.ledger.current(builder_id)
    return Known(subject, open_one, trial, ends, paid.billing if paid else None)


async def look(application: Application, known: Known) -> Observed:
    """What the engine and the preview show now, beside what is recorded."""
    subject, sandbox = known.subject, known.sandbox
    disk, wanted = await application.engine.disk(subject.disk), subject.version.settings.resources
    loss = await _loss(application, subject) if disk is None else backups.Loss()
    return Observed(
        now=application.clock.now(),
        version=await _version(application, subject.version),
        candidate=await _version(application, subject.candidate) if subject.candidate else None,
        trial=known.trial,
        disk_ready=disk is not None and known.billing is not None and disk.size_bytes == wanted.disk_bytes,
        disk_bundle=disk.bundle_hash if disk else None,
        sandbox=sandbox,
        report=await application.engine.report(sandbox.id) if sandbox else None,
        ends=known.ends,
        route=await application.previews.get(subject.builder.host),
        paid_frozen=known.billing is Billing.FROZEN,
        lost=loss.backup is not None,
        recovering=loss.recovering,
    )


async def _loss(application: Application, subject: Subject) -> backups.Loss:
    """What there is to bring back; a candidate's disk that is yet to be copied from the builder's is no loss."""
    builder = subject.builder
    if subject.disk != builder.disk and await application.engine.disk(builder.disk) is not None:
        return backups.Loss()
    now = application.clock.now()
    return await application.store.read(lambda uow: backups.loss(uow, builder.id, now))


async def _version(application: Application, version: Version) -> VersionState:
    return VersionState(
        number=version.number,
        port=version.settings.port,
        bundle_hash=version.bundle_hash,
        layer_ready=await _layer_ready(application, version),
        qa_required=version.settings.require_qa,
        qa_due=version.qa_passed is None and not version.settings.skip_qa,
        review_due=version.review_due(application.clock.now()),
    )


async def _layer_ready(application: Application, version: Version) -> bool:
    if version.layer_key is None:
        return False
    return version.layer_key == NO_LAYER or await application.engine.has_layer(version.layer_key)
