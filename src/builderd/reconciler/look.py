"""One look at a builder: what is recorded, and what the engine and the preview show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, DiskId
from builderd.domain.sandboxes import Sandbox
from builderd.domain.steps import Observed
from builderd.domain.versions import NO_LAYER, Version
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application


@dataclass(frozen=True, slots=True)
class Subject:
    """A builder under work, as it was read: with its current version."""

    builder: Builder
    version: Version

    @property
    def disk(self) -> DiskId:
        return disk_of(self.builder.id)


def disk_of(builder_id: BuilderId) -> DiskId:
    """The disk of a builder goes by the builder's id."""
    return DiskId(builder_id)


class Known(NamedTuple):
    """What is recorded of a builder. ``is_billed``: a segment of the ledger is open."""

    subject: Subject
    sandbox: Sandbox | None
    ends: tuple[Sandbox, ...]
    is_billed: bool


def read(uow: UnitOfWork, builder_id: BuilderId) -> Known | None:
    """What is recorded now; None when the builder is unknown."""
    builder = uow.builders.get(builder_id)
    if builder is None:
        return None
    version = uow.versions.get(builder_id, builder.version)
    assert version is not None, "a builder's current version is always stored"
    ends = tuple(sandbox for sandbox in uow.sandboxes.of_run(builder_id, builder.run) if sandbox.end is not None)
    is_billed = uow.ledger.current(builder_id) is not None
    return Known(Subject(builder, version), uow.sandboxes.open_of(builder_id), ends, is_billed)


async def look(application: Application, known: Known) -> Observed:
    """What the engine and the preview show now, beside what is recorded."""
    version, sandbox = known.subject.version, known.sandbox
    disk = await application.engine.disk(known.subject.disk)
    return Observed(
        now=application.clock.now(),
        port=version.settings.port,
        bundle_hash=version.bundle_hash,
        layer_ready=await _layer_ready(application, version),
        disk_ready=disk is not None and known.is_billed,
        disk_bundle=disk.bundle_hash if disk else None,
        sandbox=sandbox,
        report=await application.engine.report(sandbox.id) if sandbox else None,
        ends=known.ends,
        route=await application.previews.get(known.subject.builder.host),
    )


async def _layer_ready(application: Application, version: Version) -> bool:
    if version.layer_key is None:
        return False
    return version.layer_key == NO_LAYER or await application.engine.has_layer(version.layer_key)
