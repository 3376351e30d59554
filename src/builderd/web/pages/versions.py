"""Versions: their history, the difference of two, a rollback, and one version's deployment as it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.responses import Response

from builderd.builders import outcomes
from builderd.code import service as bundles
from builderd.code.model import Bundle
from builderd.core.errors import BuilderdError, NotFound, ValidationFailed
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Event
from builderd.events.store import EventQuery
from builderd.logs import service as logs
from builderd.logs.levels import LevelReader
from builderd.server.answers import failure
from builderd.tokens.model import Scope
from builderd.versions import service as deployments
from builderd.versions.model import Version, VersionStatus
from builderd.web.pages import deploying
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of, read_frame
from builderd.web.pages.logs import ShownLine, shown_line
from builderd.web.shown import SENTENCES, STAGES, without_lines
from builderd.web.visits import Visit, number_in, page, see_other, text_of

#: Events of a builder among which those of one version are looked for.
EVENTS = 400
LAST_LINES = 40


@page("/builders/{name}/versions")
async def show_versions(visit: Visit) -> Response:
    """Show the versions that are kept, and the difference of two of them."""
    query = visit.request.query_params
    frame, versions = await read_frame(
        visit, lambda uow, frame: deployments.list_of(uow, visit.caller, frame.builder.id)
    )
    numbers = [one.number for one in versions]
    new = number_in(query.get("to"), frame.builder.version)
    old = number_in(query.get("from"), max((number for number in numbers if number < new), default=new))
    diff, fault = None, ""
    if old != new:
        try:
            diff = await bundles.compare(visit.application, visit.caller, frame.builder.id, old, new)
        except BuilderdError as error:
            fault = error.message
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


@page("/builders/{name}/versions/{number}/patch")
async def download_patch(visit: Visit) -> Response:
    """Return the difference of a version from an earlier one as a patch."""
    builder, new = await visit.find(), number_in(visit.request.path_params["number"], 0)
    old = number_in(visit.request.query_params.get("from"), 0)
    async with visit.operations.lists.one(visit.token.tenant_id):
        text = await bundles.patch(visit.application, visit.caller, builder.id, old, new)
    headers = {"Content-Disposition": f'attachment; filename="{builder.name}-{old}-{new}.patch"'}
    return Response(text, 200, headers, "text/plain")


@page("/builders/{name}/rollback", post=True, scope=Scope.WRITE)
async def roll_back(visit: Visit) -> Response:
    """Deploy an old version again."""
    form, builder = await visit.form(), await visit.find()
    number = number_in(form.get("version", ""), 0)
    deployed = await visit.operations.change(
        builder.id,
        lambda uow: deployments.roll_back(uow, visit.application, visit.caller, builder.id, number, visit.now),
        None,
    )
    if deployed.version is None:
        return see_other(f"/builders/{builder.name}/versions", done="saved")
    return see_other(f"/builders/{builder.name}/versions/{deployed.version}")


@page("/builders/{name}/versions/{number}")
async def show_version(visit: Visit) -> Response:
    """Show one version: its stages as they go on, or how it failed and what to do next."""
    number = number_in(visit.request.path_params["number"], 0)

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
    wanted, pages = logs.LogFilter(10 * LAST_LINES), visit.operations.paged_reads
    found = await logs.read(visit.application, visit.token.tenant_id, frame.builder.id, wanted, pages)
    reader, why = LevelReader(), version.status_reason or frame.builder.status_reason
    lines = [shown_line(one.line, reader) async for one in found if one.version == version.number][-LAST_LINES:]
    return await builder_page(
        visit,
        "version.html",
        "versions",
        frame,
        version=version,
        stages=stages,
        state=state,
        lines=lines,
        reason=without_lines(why) if lines else why,
        failed_stage=next((one.name for one in stages if one.kind == "fail"), ""),
        for_agent=_for_agent(version, lines) if state == "failed" else "",
        next_step=SENTENCES["next_steps"].get(version.failure_code or "", "") if state == "failed" else "",
        total=sum(one.seconds or 0 for one in stages),
    )


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


def _for_agent(version: Version, lines: Sequence[ShownLine]) -> str:
    """Return the failure as the API answers it, with the last lines, to be copied for a program."""
    kind = outcomes.FAILURES.get(version.failure_code or "")
    error = (kind or BuilderdError)(version.status_reason, data={"version": version.number})
    body = {**failure(error).body, "log": [line.text for line in lines]}
    return json.dumps(body, indent=1, ensure_ascii=False)


#: Largest file that is edited in the browser, in bytes.
MAX_BYTES = 1_000_000
MAX_LISTED = 500


@page("/builders/{name}/code")
async def show_code(visit: Visit) -> Response:
    """Show a file of a version in an editor."""
    query = visit.request.query_params
    frame, version = await visit.read(lambda uow: _find(uow, visit, query.get("version", "")))
    bundle = await bundles.fetch(visit.application, version)
    path = query.get("file") or _first(bundle, version)
    content, fault = _text(bundle, path)
    entrypoint = version.settings.entrypoint
    return await _form(visit, frame, version, bundle, path, content=content, fault=fault, entrypoint=entrypoint)


@page("/builders/{name}/code", post=True, scope=Scope.WRITE)
async def deploy_code(visit: Visit) -> Response:
    """Deploy the version's files with this one changed, as the next version."""
    form = await visit.form()
    frame, version = await visit.read(lambda uow: _find(uow, visit, form.get("version", "")))
    path, content = form.get("path", "").strip(), form.get("content", "").replace("\r\n", "\n")
    entrypoint = form.get("entrypoint", "").strip()
    try:
        deployed = await deploying.deploy_edited(visit, frame.builder, version, path, content, entrypoint)
    except ValidationFailed as error:
        bundle = await bundles.fetch(visit.application, version)
        fault = "; ".join(f"{name} {', '.join(why)}" for name, why in error.errors.items())
        edited = {"content": content, "fault": fault, "entrypoint": entrypoint or version.settings.entrypoint}
        return await _form(visit, frame, version, bundle, path, 422, **edited)
    number = deployed.version or deployed.builder.version
    return see_other(f"/builders/{frame.builder.name}/versions/{number}")


def _find(uow: UnitOfWork, visit: Visit, number: str) -> tuple[BuilderFrame, Version]:
    frame = frame_of(uow, visit)
    wanted = number_in(number, frame.builder.version)
    version = uow.versions.get(frame.builder.id, wanted)
    if version is None or version.status is VersionStatus.DROPPED:
        raise NotFound(f"The builder {frame.builder.name} keeps no version {wanted}.")
    return frame, version


def _first(bundle: Bundle, version: Version) -> str:
    """Return the file that the start command names, else the first one."""
    paths = [file.path for file in bundle.files]
    named = (word for word in version.settings.entrypoint.split() if word in paths)
    return next(named, paths[0] if paths else "main.py")


def _text(bundle: Bundle, path: str) -> tuple[str, str]:
    """Return the file's text, and why it cannot be edited here."""
    file = next((file for file in bundle.files if file.path == path), None)
    if file is None:
        return "", ""
    if file.size > MAX_BYTES:
        return "", "The file is too large to be edited here: send it by the API."
    text = text_of(file.content)
    return (text, "") if text is not None else ("", "The file is no text in UTF-8, and cannot be edited here.")


async def _form(
    visit: Visit, frame: BuilderFrame, version: Version, bundle: Bundle, path: str, status: int = 200, **values: str
) -> Response:
    files = [file.path for file in bundle.files]
    return await builder_page(
        visit,
        "code.html",
        "versions",
        frame,
        status,
        version=version,
        paths=files[:MAX_LISTED],
        more=max(0, len(files) - MAX_LISTED),
        file=path,
        is_new=path not in files,
        **values,
    )


#: Least share of the chart that a stage is drawn with.
LEAST = 0.8


@dataclass(frozen=True, slots=True)
class Stage:
    """``kind``: pass, fail, now, todo or skip. ``x`` and ``width`` place it in a chart of 100 units."""

    name: str
    kind: str
    icon: str
    note: str
    seconds: float | None = None
    x: float = 0
    width: float = 0
    started: datetime | None = None


#: The last start and end of a stage, and the event that ended it.
Span = tuple[datetime | None, datetime | None, Event | None]


def stages_of(version: Version, events: Sequence[Event], now: datetime) -> Sequence[Stage]:
    """Return its stages. ``events`` are those of the version, oldest first."""
    settings = version.settings
    absent = {name for name, command in (("build", settings.build), ("release", settings.release)) if not command}
    spans = {name: _span(name, events) for name in STAGES if name not in absent}
    is_deployed = version.status is VersionStatus.DEPLOYED
    if is_deployed and spans["qa"][0] is None and not settings.skip_qa:
        del spans["qa"]  # a job has no gate
    begin = min((start for start, _, _ in spans.values() if start), default=version.created_at)
    is_over = version.status is not VersionStatus.PENDING
    last = max((end or (begin if is_over else now) for _, end, _ in spans.values()), default=now)
    whole = max((last - begin).total_seconds(), 0.1)

    def place(start: datetime, end: datetime) -> tuple[float, float]:
        """Return where a bar begins and its width, of 100."""
        x = min(100 - LEAST, 100 * max((start - begin).total_seconds(), 0) / whole)
        return round(x, 1), round(max(LEAST, min(100 - x, 100 * (end - start).total_seconds() / whole)), 1)

    def stage(name: str, started: datetime | None, end: datetime | None, ended: Event | None) -> Stage:
        text, note = STAGES[name], SENTENCES["stage_notes"][name]
        if started is None and ((name == "review" and settings.skip_review) or (name == "qa" and settings.skip_qa)):
            return Stage(text, "skip", "minus", "Left out.")
        if ended is None and is_over:
            was_run = is_deployed and started is not None
            return Stage(
                text,
                "pass" if was_run else "todo",
                "circle-check" if was_run else "minus",
                "Run." if was_run else "Not reached.",
            )
        if started is None:
            return Stage(text, "todo", "circle-dashed", note)
        bar = place(started, end or now)
        if ended is None:
            return Stage(text, "now", "loader-circle", note, (now - started).total_seconds(), *bar, started)
        kind, icon = ("pass", "circle-check") if ended.details.get("ok") else ("fail", "octagon-x")
        note = (ended.reason if ended.reason != name else note).split("\n")[0]
        return Stage(text, kind, icon, note, float(ended.details.get("seconds", 0)), *bar, started)

    return [stage(name, *span) for name, span in spans.items()]


def _span(name: str, events: Sequence[Event]) -> Span:
    started: datetime | None = None
    ended: Event | None = None
    for event in events:
        if event.details.get("stage") != name:
            continue
        if event.type == "stage.started":
            started, ended = event.time, None
        elif event.type == "stage.finished":
            ended = event
    if ended is not None and started is None:
        # Not every stage says that it began.
        started = ended.time - timedelta(seconds=float(ended.details.get("seconds", 0)))
    return started, ended.time if ended else None, ended


def events_of(version: Version, events: Sequence[Event]) -> Sequence[Event]:
    """Return the events of this version among a builder's, newest first; oldest first.

    Stages do not name their version: they belong to the version that was made last before them.
    """
    found: list[Event] = []
    is_its = False
    for event in reversed(events):
        if event.type in ("builder.created", "version.created"):
            is_its = event.details.get("version", 1) == version.number
            found = [] if is_its else found
        if is_its:
            found.append(event)
    return found
