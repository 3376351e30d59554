"""Observation of a builder: its stored state, and the state that the engine and the preview report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from builderd.application import Application
from builderd.backups import restores
from builderd.builders.model import Builder, Desired
from builderd.core.ids import BuilderId, DiskId
from builderd.core.members import MemberAway
from builderd.database.unit_of_work import UnitOfWork
from builderd.engine.port import DiskReport
from builderd.money.model import Billing
from builderd.reconciler.next_step import Observation, ProcessState, VersionState, prepare
from builderd.sandboxes.model import Sandbox, SandboxReport, SandboxState
from builderd.versions.model import NO_BUILD, NO_LAYER, Protocol, Version, VersionStatus


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A builder as it was read, with the version that a step works on (``version``).

    ``candidate`` is the version prepared to replace it; ``current`` the serving one where ``version`` is another.
    """

    builder: Builder
    version: Version
    candidate: Version | None = None
    current: Version | None = None

    @property
    def disk(self) -> DiskId:
        """Disk of the version that is to run."""
        return self.builder.to_run[1]

    @property
    def for_candidate(self) -> WorkItem:
        """Item whose ``version`` is the candidate."""
        assert self.candidate is not None, "the step was chosen because there is one"
        return replace(self, version=self.candidate, current=self.version)

    def for_version(self, number: int) -> WorkItem:
        """Return the item whose ``version`` has this number: the present one or the candidate."""
        return self if self.version.number == number else self.for_candidate


class StoredState(NamedTuple):
    """Stored state of a builder. ``billing`` is that of the ledger's open segment."""

    item: WorkItem
    sandbox: Sandbox | None
    trial: Sandbox | None
    ends: tuple[Sandbox, ...]
    billing: Billing | None
    processes: tuple[ProcessState, ...] = ()


def read(uow: UnitOfWork, builder_id: BuilderId) -> StoredState | None:
    """Return the stored state; None when the builder is unknown."""
    builder = uow.builders.get(builder_id)
    if builder is None:
        return None
    number, _ = builder.to_run
    version = uow.versions.require(builder_id, number)
    other = builder.candidate_version if builder.candidate_version != number else None
    candidate = uow.versions.get(builder_id, other) if other is not None else None
    # In one query: this is read at every step of every builder.
    sandboxes = uow.sandboxes.open_or_of_generation(builder_id, builder.generation)
    processes = process_states(builder, version, sandboxes)
    sandboxes = [one for one in sandboxes if not one.process]
    ends = tuple(one for one in sandboxes if one.end and not (one.trial or one.release or one.replaced))
    current = uow.versions.get(builder_id, builder.version) if builder.version != number else None
    keep_awake = [one for one in sandboxes if one.end is None]
    open_one, trial = (next((one for one in keep_awake if one.trial is is_trial), None) for is_trial in (False, True))
    paid = uow.ledger.current(builder_id)
    return StoredState(
        WorkItem(builder, version, candidate, current),
        open_one,
        trial,
        ends,
        paid.billing if paid else None,
        processes,
    )


def process_states(builder: Builder, version: Version, sandboxes: Sequence[Sandbox]) -> tuple[ProcessState, ...]:
    """Return the sandboxes of further processes that this version is to have, and others that have not ended.

    ``sandboxes`` are those of the present run, oldest first, and those that have not ended.
    """
    wanted = [
        (name, number) for name in version.settings.processes for number in range(1, builder.scale.get(name, 1) + 1)
    ]
    found: dict[tuple[str, int], list[Sandbox]] = {key: [] for key in wanted}
    for one in sandboxes:
        if one.process and (one.end is None or (one.process, one.number) in found):
            found.setdefault((one.process, one.number), []).append(one)
    return tuple(
        ProcessState(
            *key,
            wanted=key in wanted,
            sandbox=next((one for one in own if one.end is None), None),
            ends=tuple(one for one in own if one.end and not one.replaced),
        )
        for key, own in found.items()
    )


async def observe(application: Application, stored: StoredState) -> Observation:
    """Add the state that the engine and the preview report now to the stored one."""
    item, sandbox, now = stored.item, stored.sandbox, application.clock.now()
    builder, engine, to_run = item.builder, application.engine, item.builder.desired is Desired.RUNNING
    to_start = to_run and (sandbox is None or sandbox.started_at is None)
    # A builder that is to end needs no disk, and its member may be away; one that runs has it.
    disk = await engine.disks.disk(item.disk) if to_start else None
    version = await _version(application, builder, item.version, disk)
    # Of no interest before: a disk is made after the version's preparation.
    needs_disk = disk is None and to_start and prepare(version) is None
    # Unless only a candidate's disk is missing, which is still to be copied from the builder's own.
    own_is_gone = needs_disk and (item.disk == builder.disk or await engine.disks.disk(builder.disk) is None)
    loss = restores.Loss()
    if own_is_gone:
        loss = await application.store.read(lambda uow: restores.loss(uow, builder.id, now))
    report = await _report(application, sandbox, to_run=to_run)
    processes = [
        replace(one, report=await _report(application, one.sandbox, to_run=to_run)) for one in stored.processes
    ]
    # Recorded after it was made, so that it is paid and its loss will be noticed.
    is_recorded = stored.billing is not None and builder.disk_is_made
    size = item.version.settings.resources.disk_bytes
    return Observation(
        now=now,
        version=version,
        candidate=await _version(application, builder, item.candidate) if item.candidate else None,
        trial=stored.trial,
        disk_ready=disk is not None and is_recorded and disk.size_bytes == size,
        disk_bundle=disk.bundle_hash if disk else None,
        disk_build=disk.build_key if disk else "",
        disk_leaving=disk is not None and disk.is_leaving,
        sandbox=sandbox,
        report=report,
        ends=stored.ends,
        route=await application.previews.get(builder.host),
        paid_frozen=stored.billing is Billing.FROZEN,
        processes=tuple(processes),
        lost=loss.backup is not None,
        recovering=loss.recovering,
        loss_due=needs_disk and (item.version.released or (own_is_gone and builder.disk_is_made)),
    )


async def _report(application: Application, sandbox: Sandbox | None, *, to_run: bool) -> SandboxReport | None:
    if sandbox is None:
        return None
    try:
        return await application.engine.sandboxes.report(sandbox.id)
    except MemberAway:
        if to_run:
            raise
        # One that is to end on a member that is away counts as running, so that it can be ended.
        return SandboxReport(sandbox.id, sandbox.builder_id, SandboxState.RUNNING)


async def _version(
    application: Application, builder: Builder, version: Version, disk: DiskReport | None = None
) -> VersionState:
    layer, layers = version.layer_key, application.engine.layers
    build_ready = not version.settings.build
    if version.settings.build and version.build_key is not None:
        # What is on the disk already needs no layer: a start never builds.
        on_disk = disk is not None and (disk.build_key, disk.bundle_hash) == (version.build_key, version.bundle_hash)
        build_ready = on_disk or await layers.has_layer(version.build_key)
    return VersionState(
        number=version.number,
        port=version.port,
        bundle_hash=version.bundle_hash,
        layer_ready=layer is not None and (layer == NO_LAYER or await layers.has_layer(layer)),
        build_ready=build_ready,
        build_key=version.build_key or NO_BUILD,
        h2c=version.settings.protocol is Protocol.H2C,
        release_due=version.release_due,
        qa_required=version.settings.require_qa,
        qa_due=builder.job_type.is_judged and version.qa_passed is None and not version.settings.skip_qa,
        review_due=version.review_due(application.clock.now()),
        is_new=version.status in (VersionStatus.PENDING, VersionStatus.FAILED),
    )
