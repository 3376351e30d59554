"""Releases: once before a version takes over, on its disk; a failed one leaves the old version as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.application import MAIN, World
from tests.fakes.sandboxes import Behaviour

from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.code.model import BundleFile
from builderd.core.errors import InvalidState, MachineFault, ReleaseFailed
from builderd.idle import service as wake
from builderd.logs import service as logs
from builderd.logs.service import LogFilter
from builderd.money.model import Billing
from builderd.sandboxes.model import EndCause, LogStream, Sandbox
from builderd.versions import service as deployments
from builderd.versions.model import VersionStatus

COMMAND = "flask db upgrade"
OTHER = BundleFile("other.txt", b"other")
WORKS = Behaviour(listens_at=None, exits_at=1, lines=("migrated",))
FAILS = Behaviour(listens_at=None, exits_at=1, exit_code=3, lines=("no such table: users",))
HANGS = Behaviour(listens_at=None)


def never_time_out(world: World) -> None:
    """Let releases hang: the fake clock moves as fast as its sleepers ask, and would end them before they are seen."""
    world.application = replace(world.application, limits=replace(world.application.limits, release_timeout=1e9))


async def releases(world: World, builder: Builder) -> Sequence[Sandbox]:
    return [one for one in await world.records(builder) if one.release]


async def test_release_runs_once_on_the_disk_before_the_app(world: World) -> None:
    world.engine.behave(COMMAND, WORKS)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        release, app = await world.records(builder)
        assert (release.release, app.release) == (True, False)
        assert release.disk == app.disk == builder.disk
        assert release.end is not None
        assert release.end.at is not None
        assert app.started_at is not None
        assert release.end.at <= app.started_at
        stages = [event.details["stage"] for event in await world.events(builder) if event.type == "stage.finished"]
        assert stages == ["review", "install", "release", "start", "qa"]
        for command in (builders.restart, builders.stop, builders.start):
            builder = await world.reached(command, builder)
        assert len(await releases(world, builder)) == 1


async def test_lines_of_a_release_are_a_stream_of_their_own(world: World) -> None:
    world.engine.behave(COMMAND, WORKS)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        world.engine.print(world.running[0].spec.id, "serving")
        for stream, texts in ((LogStream.RELEASE, ["migrated"]), (LogStream.STDOUT, ["serving"])):
            wanted = LogFilter(tail=10, stream=stream)
            found = await logs.read(world.application, world.caller.tenant_id, builder.id, wanted)
            assert [(one.line.text, one.line.stream) async for one in found] == [(text, stream) for text in texts]


async def test_each_version_has_its_own_release_on_the_copy_of_the_disk(world: World) -> None:
    world.engine.behave(COMMAND, WORKS)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        before = builder.disk
        builder = await world.deploy(builder, MAIN, OTHER)
        first, second = await releases(world, builder)
        assert (first.disk, second.disk) == (before, builder.disk)
        assert [one.version for one in await world.records(builder)] == [1, 1, 2, 2]  # and no trial
        builder = await world.deploy(builder, MAIN, release="")
        assert len(await releases(world, builder)) == 2


async def test_failed_release_leaves_the_version_that_serves_and_its_disk(world: World) -> None:
    world.engine.behave(COMMAND, WORKS, FAILS)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        with pytest.raises(ReleaseFailed) as failure:
            await world.deploy(builder, MAIN, OTHER)
        message = failure.value.message
        assert f"({COMMAND}) failed: it exited with code 3" in message
        assert "no such table: users" in message
        assert "builderd logs my-api --stream release" in message
        assert failure.value.data["version"] == 2
        await world.until(lambda: list(world.engine.known_disks) == [builder.disk])
        now = await world.builder(builder)
        assert (now.version, now.status, now.candidate, now.disk) == (1, Status.RUNNING, None, builder.disk)
        assert "other.txt" not in world.engine.known_disks[builder.disk].files
        [failed] = [one for one in await world.events(builder) if one.details.get("ok") is False]
        assert failed.details["stage"] == "release"


async def test_failed_first_release_leaves_no_disk_and_the_next_start_begins_anew(world: World) -> None:
    world.engine.behave(COMMAND, FAILS, WORKS)
    async with world.reconciling():
        builder = await world.ask(MAIN, release=COMMAND)
        with pytest.raises(ReleaseFailed):
            await world.outcome(builder)
        builder = await world.builder(builder)
        assert (builder.status, builder.failure_code, builder.exit_code) == (Status.FAILED, "release_failed", 3)
        await world.until(lambda: not world.engine.known_disks)
        builder = await world.reached(builders.start, builder)
        assert builder.status is Status.RUNNING
        first, second = await releases(world, builder)
        assert first.disk != second.disk == builder.disk
        assert (await world.segments(builder))[-1].billing is Billing.RUNNING


@pytest.mark.parametrize("busy", [False, True])
async def test_release_is_stopped_when_its_time_is_over(world: World, busy: bool) -> None:
    world.engine.behave(COMMAND, HANGS)
    world.engine.busy = busy
    async with world.reconciling():
        seconds = 240 if busy else 120
        with pytest.raises(ReleaseFailed, match=rf"did not end within {seconds} s \(limits\.release_timeout\)"):
            await world.create(MAIN, release=COMMAND)
        await world.until_nothing_runs()


async def test_release_that_the_machine_cut_off_is_not_run_again(world: World) -> None:
    world.engine.behave(COMMAND, WORKS, HANGS)
    never_time_out(world)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        number = await world.put(builder, MAIN, OTHER)
        await world.until(lambda: any(one.spec.entrypoint == COMMAND for one in world.running))
        world.engine.restart_host()
        with pytest.raises(MachineFault, match=r"cut off.*not run again by itself"):
            await world.deployed(builder, number)
        builder = await world.until_status(builder, Status.RUNNING)
        assert (builder.version, len(await releases(world, builder))) == (1, 2)


async def test_stop_gives_the_release_of_a_candidate_up(world: World) -> None:
    world.engine.behave(COMMAND, WORKS, HANGS)
    never_time_out(world)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        number = await world.put(builder, MAIN, OTHER)
        await world.until(lambda: any(one.spec.entrypoint == COMMAND for one in world.running))
        await world.reached(builders.stop, builder)
        with pytest.raises(InvalidState):
            await world.deployed(builder, number)
        await world.until(lambda: list(world.engine.known_disks) == [builder.disk])
        assert (await world.version(await world.builder(builder))).number == 1


async def test_stopped_first_release_runs_again_on_another_disk(world: World) -> None:
    world.engine.behave(COMMAND, HANGS, WORKS)
    never_time_out(world)
    async with world.reconciling():
        builder = await world.ask(MAIN, release=COMMAND)
        await world.until(lambda: len(world.running) == 1)
        builder = await world.reached(builders.stop, builder)
        builder = await world.reached(builders.start, builder)
        first, second = await releases(world, builder)
        assert first.disk != second.disk == builder.disk
        began = [one for one in await world.events(builder) if one.type == "stage.started"]
        assert [one.details["stage"] for one in began].count("release") == 2


async def test_no_command_gets_into_the_sandbox_of_a_release(world: World) -> None:
    world.engine.behave(COMMAND, HANGS)
    never_time_out(world)
    async with world.reconciling():
        builder = await world.ask(MAIN, release=COMMAND)
        await world.until(lambda: len(world.running) == 1)
        with pytest.raises(InvalidState, match="still being created"):
            await wake.awake(world.application, builder.id)
        await world.want(builders.delete, builder)


async def test_settings_of_a_stopped_builder_need_no_release_unless_it_changes(world: World) -> None:
    world.engine.behave(COMMAND, WORKS)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        builder = await world.reached(builders.stop, builder)
        await world.configure(builder, env={"A": "1"})
        builder = await world.reached(builders.start, builder)
        assert (builder.version, len(await releases(world, builder))) == (2, 1)
        builder = await world.reached(builders.stop, builder)
        await world.configure(builder, release="other")
        world.engine.behave("other", WORKS)
        builder = await world.reached(builders.start, builder)
        assert len(await releases(world, builder)) == 2


async def test_release_runs_again_for_a_disk_that_was_lost(world: World) -> None:
    world.engine.behave(COMMAND, WORKS)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        builder = await world.reached(builders.stop, builder)
        del world.engine.known_disks[builder.disk]
        builder = await world.reached(builders.start, builder)
        assert len(await releases(world, builder)) == 2


async def test_new_service_token_waits_for_a_release(world: World) -> None:
    world.engine.behave(COMMAND, WORKS)
    world.engine.behave("slow", HANGS)
    never_time_out(world)
    async with world.reconciling():
        builder = await world.create(MAIN, release=COMMAND)
        builder = await world.reached(builders.stop, builder)
        await world.configure(builder, release="slow")
        await world.want(builders.start, builder)
        await world.until(lambda: len(world.running) == 1)
        app, now = world.application, world.clock.now()
        renewing = asyncio.create_task(
            outcomes.after_take_over(
                app,
                builder.id,
                lambda: app.commit(
                    lambda uow: deployments.renew_service_token(uow, app, world.caller, builder.id, now)
                ),
            )
        )
        done, _ = await asyncio.wait({renewing}, timeout=0.1)
        assert not done
        world.engine.end(world.running[0].spec.id, EndCause.EXITED, 0)
        renewed = await world.outcome(await renewing)
        assert renewed.status is Status.RUNNING
        assert len(await releases(world, builder)) == 2
        assert world.running[-1].spec.env["SERVICE_TOKEN"] == renewed.service_token != builder.service_token


async def test_version_whose_release_failed_is_failed_by_it(world: World) -> None:
    world.engine.behave(COMMAND, replace(FAILS, out_of_memory=True))
    async with world.reconciling():
        builder = await world.ask(MAIN, release=COMMAND)
        with pytest.raises(ReleaseFailed, match="out of memory"):
            await world.outcome(builder)
        version = await world.version(builder)
        assert (version.status, version.failure_code) == (VersionStatus.FAILED, "release_failed")
