"""QA reports as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, add, add_builder, make_version

from builderd.domain.ids import BuilderId, DiskId
from builderd.domain.qa import Check, CheckName, Outcome, QaReport, ReportStatus, Screenshot
from builderd.store import Store, UnitOfWork

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
