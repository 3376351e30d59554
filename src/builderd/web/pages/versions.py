"""Versions: their history, the difference of two, a rollback, and one version's deployment as it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.responses import Response

from builderd.api.server.answers import failure
from builderd.domain.errors import BuilderdError, NotFound
from builderd.domain.events import Event
from builderd.domain.tokens import Scope
from builderd.domain.versions import Version, VersionStatus
from builderd.services import deployments, diffs, logs, outcomes
from builderd.services.diffs import VersionDiff
from builderd.store import UnitOfWork
from builderd.store.events import EventQuery
from builderd.web import commands
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of
from builderd.web.stages import events_of, stages_of
from builderd.web.visits import Visit, page, see_other

#: Events of a builder among which those of one version are looked for.
EVENTS = 400
LAST_LINES = 40


@page("/builders/{name}/versions")
async def show_versions(visit: Visit) -> Response:
    """Show the versions that are kept, and the difference of two of them."""
    query = visit.request.query_params

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, Sequence[Version]]:
        frame = frame_of(uow, visit)
        return frame, deployments.list_of(uow, visit.caller, frame.builder.id)

    frame, versions = await visit.read(look)
    numbers = [one.number for one in versions]
    new = _number(query.get("to"), frame.builder.version)
    old = _number(query.get("from"), max((number for number in numbers if number < new), default=new))
    diff, fault = await _diff(visit, frame, old, new)
    return await builder_page(
        visit,
        "versions.html",
        "versions",
        frame,
        versions=versions,
        numbers=numbers,
        before={number: max((one for one in numbers if one < number), default=0) for number in numbers},
        old=old,
        new=new,
        diff=diff,
        fault=fault,
    )


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else otherwise


async def _diff(visit: Visit, frame: BuilderFrame, old: int, new: int) -> tuple[VersionDiff | None, str]:
    if old == new:
        return None, ""
    try:
        return await diffs.compare(visit.application, visit.caller, frame.builder.id, old, new), ""
    except BuilderdError as error:
        return None, error.message


@page("/builders/{name}/versions/{number}/patch")
async def download_patch(visit: Visit) -> Response:
    """Return the difference of a version from an earlier one as a patch."""
    builder, new = await visit.find(), _number(visit.request.path_params["number"], 0)
    old = _number(visit.request.query_params.get("from"), 0)
    async with visit.operations.lists.one(visit.token.tenant_id):
        text = await diffs.patch(visit.application, visit.caller, builder.id, old, new)
    headers = {"Content-Disposition": f'attachment; filename="{builder.name}-{old}-{new}.patch"'}
    return Response(text, 200, headers, "text/plain")


@page("/builders/{name}/rollback", post=True, scope=Scope.WRITE)
async def roll_back(visit: Visit) -> Response:
    """Deploy an old version again."""
    form, builder = await visit.form(), await visit.find()
    deployed = await commands.roll_back(visit, builder, _number(form.get("version", ""), 0))
    if deployed.version is None:
        return see_other(f"/builders/{builder.name}/versions", done="saved")
    return see_other(f"/builders/{builder.name}/versions/{deployed.version}")


@page("/builders/{name}/versions/{number}")
async def show_version(visit: Visit) -> Response:
    """Show one version: its stages as they go on, or how it failed and what to do next."""
    number = _number(visit.request.path_params["number"], 0)

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, Version | None, Sequence[Event]]:
        frame = frame_of(uow, visit)
        query = EventQuery(frame.builder.id, types=("stage.*", "version.*", "builder.created"))
        events, _ = uow.events.page(visit.token.tenant_id, query, page=1, per_page=EVENTS)
        return frame, uow.versions.get(frame.builder.id, number), events

    frame, version, events = await visit.read(look)
    if version is None or version.status is VersionStatus.DROPPED:
        raise NotFound(f"The builder {frame.builder.name} keeps no version {number}.")
    stages = stages_of(version, events_of(version, events), visit.now)
    state = _state(frame, version)
    lines = await _last_lines(visit, frame, version)
    return await builder_page(
        visit,
        "version.html",
        "versions",
        frame,
        version=version,
        stages=stages,
        state=state,
        lines=lines,
        failed_stage=next((one.name for one in stages if one.kind == "fail"), ""),
        for_agent=_for_agent(version, lines) if state == "failed" else "",
        next_step=NEXT.get(version.failure_code or "", "") if state == "failed" else "",
        total=sum(one.seconds or 0 for one in stages),
    )


#: The next step after a failure, by its code.
NEXT = {
    "review_failed": "Open the review: accept what is right as it is, or deploy code without it.",
    "install_failed": "Look at the installer's last lines below, mend the list of dependencies, and send it again.",
    "build_failed": "Look at the build's last lines below, correct the code or the build command, and send it again.",
    "release_failed": "Look at its last lines below, correct the code or the release command, and send it again.",
    "start_failed": "Look at its last lines below. It must listen on 0.0.0.0, at the port in the variable PORT.",
    "qa_failed": "Open QA: it names the question that was not answered well.",
    "no_capacity": "The machine has no room now. Try again later, or with fewer resources.",
}


def _state(frame: BuilderFrame, version: Version) -> str:
    """Return deploying, failed, serves or past."""
    builder = frame.builder
    if version.number == builder.candidate_version or (
        version.number == builder.version and version.status is VersionStatus.PENDING
    ):
        return "failed" if builder.status == "failed" and builder.candidate is None else "deploying"
    if version.status is VersionStatus.FAILED:
        return "failed"
    return "serves" if version.number == builder.version else "past"


async def _last_lines(visit: Visit, frame: BuilderFrame, version: Version) -> Sequence[logs.VersionedLine]:
    wanted, pages = logs.LogFilter(10 * LAST_LINES), visit.operations.paged_reads
    found = await logs.read(visit.application, visit.token.tenant_id, frame.builder.id, wanted, pages)
    return [line async for line in found if line.version == version.number][-LAST_LINES:]


def _for_agent(version: Version, lines: Sequence[logs.VersionedLine]) -> str:
    """Return the failure as the API answers it, with the last lines, to be copied for a program."""
    kind = outcomes.FAILURES.get(version.failure_code or "")
    error = (kind or BuilderdError)(version.status_reason, data={"version": version.number})
    body = {**failure(error).body, "log": [line.line.text for line in lines]}
    return json.dumps(body, indent=1, ensure_ascii=False)
