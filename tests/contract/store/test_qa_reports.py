"""QA reports, review reports and acceptances in the store."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import update
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, add_builder, make_version

from builderd.builders.model import Builder, Desired, Status
from builderd.core.ids import BuilderId, DiskId
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.qa.model import Check, CheckName, Outcome, QaReport, ReportStatus, Screenshot
from builderd.review.model import Acceptance, Finding, Report, Severity
from builderd.review.store import reviews

GATE = (Check(CheckName.ANSWER, Outcome.FAILED, "GET / was answered 500.", 0.01, ("a page",)),)


def make_report(builder: BuilderId, version: int = 1, status: ReportStatus = ReportStatus.NONE) -> QaReport:
    return QaReport(builder, version, status, requested_at=NOW)


async def save(store: Store, *reports: QaReport) -> None:
    for report in reports:
        await store.write(lambda uow, report=report: uow.qa_reports.save(report))  # type: ignore[misc]


async def test_last_saved_report_is_returned(store: Store) -> None:
    builder = await add_builder(store)
    report = make_report(builder.id)
    await save(store, report)
    full = replace(
        report,
        status=ReportStatus.DONE,
        gate=GATE,
        gate_at=NOW,
        checks=GATE,
        screenshots=("desktop",),
        note="why",
        requested_by="token ci",
        started_at=NOW,
        finished_at=NOW + SECOND,
        attempts=2,
        owner="here",
        copy_disk=DiskId("a-copy"),
    )
    await save(store, full)
    assert await store.read(lambda uow: uow.qa_reports.get(builder.id, 1)) == full
    assert await store.read(lambda uow: uow.qa_reports.get(builder.id, 2)) is None


async def test_report_that_was_lacking_is_stored_once_and_then_changed(store: Store) -> None:
    builder = await add_builder(store)
    first, last = make_report(builder.id), make_report(builder.id, status=ReportStatus.WAITING)

    def work(uow: UnitOfWork) -> QaReport | None:
        assert uow.qa_reports.get(builder.id, 1) is None
        uow.qa_reports.save(first)
        uow.qa_reports.save(last)
        return uow.qa_reports.get(builder.id, 1)

    assert await store.write(work) == last
    assert await store.read(lambda uow: uow.qa_reports.get(builder.id, 1)) == last


async def test_unstorable_characters_of_an_app_are_replaced(store: Store) -> None:
    builder = await add_builder(store)
    check = Check(CheckName.LOG, Outcome.FAILED, "nul \0", findings=("half \ud83d a pair",))
    await save(store, replace(make_report(builder.id), gate=(check,)))
    found = await store.read(lambda uow: uow.qa_reports.get(builder.id, 1))
    assert found is not None
    assert (found.gate[0].message, found.gate[0].findings) == ("nul \ufffd", ("half \ufffd a pair",))


async def test_open_reports_and_those_with_a_copy_are_unfinished(store: Store) -> None:
    builder = await add_builder(store)
    for number in (2, 3, 4, 5):
        await add(store, make_version(builder.id, number=number))
    await save(
        store,
        replace(make_report(builder.id, 1, ReportStatus.WAITING), requested_at=NOW + SECOND),
        make_report(builder.id, 2, ReportStatus.RUNNING),
        make_report(builder.id, 3, ReportStatus.DONE),
        replace(make_report(builder.id, 4, ReportStatus.DROPPED), copy_disk=DiskId("left-over")),
        make_report(builder.id, 5),
    )
    assert [one.version for one in await store.read(lambda uow: uow.qa_reports.unfinished())] == [2, 4, 1]


async def test_screenshots_are_replaced_and_deleted_with_reports(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    picture = Screenshot("desktop", 1280, 800, b"\x89PNG\0\xff")
    for one in (builder, other):
        await save(store, make_report(one.id))
        await store.write(
            lambda uow, one=one: uow.qa_reports.put_screenshots(  # type: ignore[misc]
                one.id, 1, [picture, replace(picture, name="phone")]
            )
        )
    await store.write(lambda uow: uow.qa_reports.put_screenshots(builder.id, 1, [picture]))
    assert await store.read(lambda uow: uow.qa_reports.screenshot(builder.id, 1, "desktop")) == picture
    assert await store.read(lambda uow: uow.qa_reports.screenshot(builder.id, 1, "phone")) is None
    await store.write(lambda uow: uow.qa_reports.delete(builder.id))
    assert await store.read(lambda uow: uow.qa_reports.get(builder.id, 1)) is None
    assert await store.read(lambda uow: uow.qa_reports.screenshot(builder.id, 1, "desktop")) is None
    assert await store.read(lambda uow: uow.qa_reports.screenshot(other.id, 1, "phone")) is not None


HELD = Finding("f" * 32, "RSK-x", Severity.HOLD, "app.py", 3, "the line", "it does", "Do not", demoted=True)
REPORT = Report("c" * 64, "p" * 64, (HELD,), {"ruff": "1"}, 2, 0.125, NOW, {"RUF-S101": 3}, untold=1)


async def put(store: Store, report: Report, builder: Builder) -> None:
    await store.write(lambda uow: uow.reviews.put(builder.tenant_id, report))


async def test_fields_of_a_later_version_are_ignored(store: Store) -> None:
    builder = await add_builder(store)
    await put(store, REPORT, builder)
    document = {name: value for name, value in asdict(REPORT).items() if name != "reviewed_at"}
    later = {**document, "findings": [{**asdict(HELD), "column": 7}], "language": "python"}

    def write(uow: Any) -> None:
        uow.reviews._connection.execute(update(reviews).values(report=later))

    await store.write(write)
    assert await store.read(lambda uow: uow.reviews.get(TENANT.id, REPORT.key)) == REPORT


async def test_report_is_keyed_by_policy_and_content(store: Store) -> None:
    builder = await add_builder(store)
    others = [replace(REPORT, policy_hash="q" * 64), replace(REPORT, content_hash="d" * 64)]
    for report in (REPORT, *others):
        await put(store, report, builder)
    for report in (REPORT, *others):
        assert await store.read(lambda uow, key=report.key: uow.reviews.get(TENANT.id, key)) == report  # type: ignore[misc]


async def test_unused_reports_are_deleted(store: Store) -> None:
    await add(store, OTHER_TENANT)
    builder = await add_builder(store)
    other = await add_builder(store, tenant_id=OTHER_TENANT.id)
    gone = await add_builder(store)
    used, foreign, deleted, unused = (replace(REPORT, content_hash=letter * 64) for letter in "abcd")
    young = replace(REPORT, content_hash="e" * 64, reviewed_at=NOW + SECOND)
    await add(store, make_version(builder.id, number=2, review_key=used.key))
    await add(store, make_version(other.id, number=2, review_key=foreign.key))
    await add(store, make_version(gone.id, number=2, review_key=deleted.key))
    for report in (used, foreign, deleted, unused, young):
        await put(store, report, builder)

    def forget(uow: UnitOfWork) -> None:
        found = uow.builders.get(gone.id, lock=True)
        assert found is not None
        uow.builders.save(replace(found, desired=Desired.DELETED, status=Status.DELETED))

    await store.write(forget)
    assert await store.write(lambda uow: uow.reviews.expire(NOW + SECOND, 2)) == 2
    assert await store.write(lambda uow: uow.reviews.expire(NOW + SECOND, 2)) == 1

    def left(uow: UnitOfWork) -> list[Report | None]:
        return [uow.reviews.get(TENANT.id, one.key) for one in (used, foreign, deleted, unused, young)]

    assert await store.read(left) == [used, None, None, None, young]


async def test_acceptance_belongs_to_one_builder_and_can_be_renewed(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    first = Acceptance(builder.id, "f" * 32, "it is meant", "token ci", NOW)
    second = Acceptance(builder.id, "e" * 32, "for now", "token root", NOW + SECOND, NOW + SECOND * 9)
    foreign = replace(first, builder_id=other.id)
    again = replace(first, reason="it is still meant", accepted_at=NOW + SECOND * 2, expires_at=NOW + SECOND * 3)

    async def save(acceptance: Acceptance) -> None:
        await store.write(lambda uow: uow.acceptances.save(acceptance))

    for acceptance in (first, second, foreign, again):
        await save(acceptance)
    assert await store.read(lambda uow: uow.acceptances.of_builder(builder.id)) == [second, again]
    await store.write(lambda uow: uow.acceptances.delete(builder.id))
    assert await store.read(lambda uow: uow.acceptances.of_builder(builder.id)) == []
    assert await store.read(lambda uow: uow.acceptances.of_builder(other.id)) == [foreign]
