"""The review of a version: its findings, and their acceptance with a reason."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from builderd.domain.errors import NotFound
from builderd.domain.reviews import Finding, Severity
from builderd.domain.tokens import Scope
from builderd.services import bundles, verdicts
from builderd.services.verdicts import NewAcceptance, ReviewView
from builderd.store import UnitOfWork
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of
from builderd.web.visits import Visit, page, see_other

#: Lines of the code that are shown before and after a finding's, and characters of each.
AROUND, MAX_LINE = 2, 400
#: Files with findings that are opened to show the code around them, and the bytes of one.
MAX_FILES, MAX_BYTES = 40, 1_000_000
#: A block is accepted until a date.
BLOCK_SPAN = timedelta(days=30)


async def show_review(visit: Visit) -> Response:
    """Show the findings of a version's review, in their code."""
    number = _number(visit.request.query_params.get("version", ""))

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, ReviewView | None]:
        frame = frame_of(uow, visit)
        try:
            return frame, verdicts.get(uow, visit.token.tenant_id, frame.builder.id, visit.now, number)
        except NotFound:
            return frame, None

    frame, view = await visit.read(look)
    code = await _code(visit, view) if view else {}
    open_ = {one.fingerprint for one in view.verdict.open} if view else set()
    counts = {one: sum(f.severity is one for f in view.report.findings) for one in Severity} if view else {}
    return await builder_page(
        visit,
        "review.html",
        "review",
        frame,
        view=view,
        code=code,
        open=open_,
        counts=counts,
        number=number,
        may_block=visit.allows(Scope.ADMIN),
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None


async def _code(visit: Visit, view: ReviewView) -> dict[str, list[tuple[int, str, bool]]]:
    """Return the lines around each finding by its fingerprint: number, text, and whether it is the finding's.

    The line itself is the report's, in which secrets are masked; so is every other line that holds a finding.
    """
    try:
        bundle = await bundles.fetch(visit.application, view.version)
    except Exception:
        return {}
    wanted = {one.path for one in view.report.findings[:MAX_FILES] if one.line}
    texts = {
        file.path: file.content.decode("utf-8", "replace").split("\n")
        for file in bundle.files
        if file.path in wanted and file.size <= MAX_BYTES
    }
    masked = {(one.path, one.line): one.text for one in view.report.findings}
    return {
        one.fingerprint: _around(one, texts[one.path], masked)
        for one in view.report.findings
        if one.path in texts and one.line
    }


def _around(one: Finding, lines: list[str], masked: dict[tuple[str, int], str]) -> list[tuple[int, str, bool]]:
    first, last = max(1, one.line - AROUND), min(len(lines), one.line + AROUND)
    return [
        (number, masked.get((one.path, number), lines[number - 1])[:MAX_LINE], number == one.line)
        for number in range(first, last + 1)
    ]


async def accept(visit: Visit) -> Response:
    """Accept a finding of this builder, with a reason."""
    form, builder = await visit.form(), await visit.find()
    as_admin = visit.allows(Scope.ADMIN)
    new = NewAcceptance(
        form.text("fingerprint"),
        form.text("reason").strip(),
        visit.now + BLOCK_SPAN if form.text("block") == "yes" else None,
        as_admin=as_admin,
    )
    number = await verdicts.accept(visit.application, visit.caller, builder.id, new, visit.now)
    return see_other(f"/builders/{builder.name}/review", {"version": str(number), "done": "accepted"})


ROUTES = [
    page("/builders/{name}/review", show_review),
    page("/builders/{name}/review", accept, post=True, scope=Scope.WRITE),
]
