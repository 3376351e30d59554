"""The review in a builder's life: before anything of its code runs, bound to that code, and on the record."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from tests.application import MAIN, REQUIREMENTS, World
from tests.unit.reconciler.test_worker import pass_time

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.code.model import BundleFile
from builderd.core.errors import Forbidden, InvalidState, MachineFault, NotFound, ValidationFailed, helper_died
from builderd.reconciler.worker import MAX_FAILURES
from builderd.review import verdicts
from builderd.review.model import ReviewFailed
from builderd.review.verdicts import NewAcceptance, ReviewView

EVIL = BundleFile("main.py", b"x = 1\nopen_shell()\n")
RISKY = BundleFile("main.py", b"take_risk()\n")
RISKY_TOO = BundleFile("main.py", b"take_risk()  # and more\n")
NEW = BundleFile("main.py", b"print('new')\n")


@pytest.fixture(autouse=True)
def dislikes(world: World) -> None:
    world.scanner.dislikes = {"open_shell": "MAL-reverse-shell", "take_risk": "RSK-metadata", "missing": "SAN-syntax"}


async def report(world: World, builder: Builder, number: int | None = None) -> ReviewView:
    tenant, now = builder.tenant_id, world.clock.now()
    return await world.read(lambda uow: verdicts.get(uow, tenant, builder.id, now, number))


async def accept(
    world: World, builder: Builder, number: int = 1, *, until: datetime | None = None, as_admin: bool = False
) -> ReviewView:
    """The first finding of that version."""
    finding = (await report(world, builder, number)).report.findings[0]
    new = NewAcceptance(finding.fingerprint, "it is meant", until, as_admin)
    await verdicts.accept(world.application, world.caller, builder.id, new, world.clock.now())
    return await report(world, builder, number)


async def held(world: World, *files: BundleFile) -> Builder:
    builder = await world.ask(*(files or (RISKY,)))
    with pytest.raises(ReviewFailed):
        await world.outcome(builder)
    return builder


async def test_nothing_is_installed_before_the_review_has_passed(world: World) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        builder = await world.ask(EVIL, REQUIREMENTS)
        await world.until(lambda: world.scanner.scanned)
        await asyncio.sleep(0.02)
        assert world.called("build_layer") == 0
        world.scanner.open.set()
        with pytest.raises(ReviewFailed):
            await world.outcome(builder)
    assert world.called("build_layer") == 0


async def test_a_scanner_that_fails_lets_nothing_pass_and_is_asked_again(world: World) -> None:
    world.scanner.failure = "the scanner needed more than 1000 MB of memory"
    async with world.reconciling():
        builder = await world.ask(MAIN)
        with pytest.raises(ReviewFailed, match="1000 MB of memory"):
            await world.outcome(builder)
        world.scanner.failure = None
        assert (await world.reached(builders.start, builder)).status is Status.RUNNING
    assert len(world.scanner.scanned) == 2


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_a_scanner_that_is_killed_is_asked_again_and_never_the_codes_fault(world: World) -> None:
    killed = helper_died("the review's scanner", "was killed")
    world.scanner.faults = [killed] * (1 + MAX_FAILURES)
    async with world.reconciling():
        builder = await world.ask(MAIN)
        with pytest.raises(MachineFault, match="was killed"):
            await pass_time(world, asyncio.create_task(world.outcome(builder)))
        up = asyncio.create_task(world.reached(builders.start, builder))
        assert (await pass_time(world, up)).status is Status.RUNNING
    assert len(world.scanner.scanned) == 2 + MAX_FAILURES


async def test_acceptance_covers_one_builder_and_line(world: World) -> None:
    async with world.reconciling():
        builder = await held(world)
        await accept(world, builder)
        await world.reached(builders.start, builder)
        with pytest.raises(ReviewFailed):
            await world.deploy(builder, RISKY_TOO)
        with pytest.raises(ReviewFailed):
            await world.create(RISKY, name="another")


async def test_only_an_admin_accepts_a_block_and_only_until_a_date(world: World) -> None:
    soon = world.clock.now() + timedelta(minutes=5)
    async with world.reconciling():
        builder = await held(world, EVIL)
        with pytest.raises(Forbidden):
            await accept(world, builder, until=soon)
        for date in (None, world.clock.now()):
            with pytest.raises(ValidationFailed):
                await accept(world, builder, until=date, as_admin=True)
        await accept(world, builder, until=soon, as_admin=True)
        assert (await world.reached(builders.start, builder)).status is Status.RUNNING
        world.clock.move(301)
        await asyncio.sleep(0.05)
        assert (await world.builder(builder)).status is Status.RUNNING
        assert not (await report(world, builder)).verdict.passed
        await world.reached(builders.stop, builder)
        with pytest.raises(ReviewFailed):
            await world.outcome(await world.want(builders.start, builder))
    assert (await world.version(builder)).review_passed is False


async def test_broken_code_and_warnings_cannot_be_accepted(world: World) -> None:
    world.scanner.dislikes["print"] = "RUF-S101"
    later = world.clock.now() + timedelta(1)
    async with world.reconciling():
        insane = await held(world, BundleFile("main.py", b"missing\n"))
        with pytest.raises(InvalidState, match="fix it"):
            await accept(world, insane, until=later, as_admin=True)
        warned = await world.create(MAIN, name="warned")
        with pytest.raises(InvalidState, match="only warns"):
            await accept(world, warned, as_admin=True)
        new = NewAcceptance("0" * 32, "why", None, as_admin=True)
        with pytest.raises(NotFound, match="fingerprint"):
            await verdicts.accept(world.application, world.caller, warned.id, new, world.clock.now())


async def test_other_settings_for_the_same_code_need_no_other_review(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN)
        changed = await world.configure(builder, env={"A": "1"})
        back = await world.roll_back(builder, 1)
    assert (changed.version, back.version) == (2, 3)
    assert len(world.scanner.scanned) == 1
    assert (await world.version(back)).review_passed is True


async def test_another_command_is_another_content(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN)
        with pytest.raises(ReviewFailed, match=r"starts gone\.py"):
            await world.deploy(builder, MAIN, entrypoint="python3 gone.py")
    assert len(world.scanner.scanned) == 2


async def test_a_review_that_is_left_out_says_nothing_and_another_ones_is_outdated(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(EVIL, skip_review=True)
        assert world.scanner.scanned == []
        assert (await world.version(builder)).review_passed is None
        with pytest.raises(NotFound, match="left out"):
            await report(world, builder)
        await world.deploy(builder, MAIN)
        builder = await world.deploy(builder, NEW, skip_review=True)
        old = await report(world, builder)
        assert (old.version.number, old.outdated, old.verdict.passed) == (2, True, True)
        view = await verdicts.again(world.application, world.caller, builder.id)
    assert (view.version.number, view.outdated) == (3, False)
    assert (await world.version(builder)).review_passed is None
    skipped = [e.details for e in await world.events(builder) if e.type == "gate.skipped"]
    assert skipped == [{"gate": "review", "version": 1}, {"gate": "review", "version": 3}]


async def test_skipped_gate_is_not_inherited_by_other_callers(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(EVIL, skip_review=True, skip_qa=True)
        assert (await world.configure(builder, auto_stop_interval=15)).version == 1
        with pytest.raises(ReviewFailed):
            await world.configure(builder, env={"A": "1"})
        with pytest.raises(ReviewFailed):
            await world.roll_back(builder, 1)
        assert (await world.version(builder)).number == 1


async def test_later_finding_prevents_only_the_next_start(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN)
        world.scanner.dislikes["print"] = "MAL-miner"
        view = await verdicts.again(world.application, world.caller, builder.id)
        assert not view.verdict.passed
        assert (await world.builder(builder)).status is Status.RUNNING
        with pytest.raises(ReviewFailed):
            await world.outcome(await world.want(builders.restart, builder))
        await world.until_nothing_runs()


async def test_a_builder_that_is_deleted_during_its_review_leaves_nothing(world: World) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        await world.until(lambda: world.scanner.scanned)
        await world.reached(builders.delete, builder)
        await world.until_nothing_is_left()


async def test_one_tenant_does_not_keep_the_others_waiting(world: World) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        for number in range(4):
            await world.ask(BundleFile("main.py", str(number).encode()), name=f"many-{number}")
        await world.until(lambda: len(world.scanner.scanned) == 2)
        world.caller = await world.tenant("zeta")
        await world.ask(NEW)
        await world.until(lambda: len(world.scanner.scanned) == 3)
        world.scanner.open.set()
        await world.until(lambda: len(world.scanner.scanned) == 5)
