"""Disks that records name: of builders, their open sandboxes, backups, open restores and QA reports."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, make_builder, make_sandbox, make_version
from tests.contract.store.test_backups import _backup, _restore
from tests.contract.store.test_qa_reports import make_report

from builderd.domain.backups import RestoreStatus
from builderd.domain.builders import Candidate, Desired, Status
from builderd.domain.ids import DiskId, SandboxId, new_id
from builderd.domain.sandboxes import EndCause, SandboxEnd
from builderd.ports.store import Store, UnitOfWork


def disk(name: str) -> DiskId:
    return DiskId(name)


async def test_every_record_that_may_need_a_disk_names_it(store: Store) -> None:
    full = make_builder(
        disk=disk("own"), spare_disks=(disk("spare-1"), disk("spare-2")), candidate=Candidate(1, disk("candidate"))
    )
    plain = make_builder(name="plain", host="plain", service_token="t2", disk=disk("plain"), spare_disks=())
    deleted = make_builder(
        name="deleted",
        host="deleted",
        service_token="t3",
        disk=disk("deleted"),
        status=Status.DELETED,
        desired=Desired.DELETED,
    )
    end = SandboxEnd(EndCause.STOPPED, None, NOW)
    backup = _backup(full, copy=disk("held"))

    def add(uow: UnitOfWork) -> None:
        for builder in (full, plain, deleted):
            uow.builders.add(builder)
            uow.versions.add(make_version(builder.id))
        trial = make_sandbox(full.id, id=SandboxId(new_id()), disk=disk("trial"), trial=True)
        uow.sandboxes.add(trial)
        ended = make_sandbox(full.id, id=SandboxId(new_id()), disk=disk("ended"), attempt=2)
        uow.sandboxes.add(ended)
        uow.sandboxes.save(replace(ended, end=end))
        uow.backups.add(backup)
        uow.backups.add(_backup(full))
        for status in RestoreStatus:
            uow.restores.add(_restore(backup, status=status, disk=disk(status.value)))
        uow.qa_reports.save(replace(make_report(full.id), copy_disk=disk("qa"), started_at=NOW + SECOND))
        uow.qa_reports.save(make_report(plain.id))

    await store.write(add)
    assert set(await store.read(lambda uow: uow.named_disks.all())) == {
        *("own", "spare-1", "spare-2", "candidate", "plain", "trial", "held", "planned", "filled", "qa"),
    }


async def test_empty_store_names_no_disk(store: Store) -> None:
    assert not await store.read(lambda uow: uow.named_disks.all())
