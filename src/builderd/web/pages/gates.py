"""The gates of a version: findings of the review and their acceptance; checks and report of QA."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from builderd.domain.reviews import Finding, Severity
from builderd.domain.tokens import Scope
from builderd.services import bundles, qa, verdicts
from builderd.services.verdicts import NewAcceptance, ReviewView
from builderd.web.pages.builder import builder_page, read_frame, review_of
from builderd.web.visits import Visit, number_in, page, see_other

#: Lines of the code that are shown before and after a finding's, and characters of each.
AROUND, MAX_LINE = 2, 400
#: Files with findings that are opened to show the code around them, and the bytes of one.
MAX_FILES, MAX_BYTES = 40, 1_000_000
#: A block is accepted until a date.
BLOCK_SPAN = timedelta(days=30)


@page("/builders/{name}/review")
async def show_review(visit: Visit) -> Response:
    """Show the findings of a version's review, in their code."""
    number = number_in(visit.request.query_params.get("version"), None)
    frame, view = await read_frame(visit, lambda uow, frame: review_of(uow, visit, frame.builder, number))
    findings = view.report.findings if view else ()
    return await builder_page(
        visit,
        "review.html",
        "review",
        frame,
        view=view,
        code=await _code(visit, view) if view else {},
        open={one.fingerprint for one in view.verdict.open} if view else set(),
        counts={one: sum(found.severity is one for found in findings) for one in Severity} if view else {},
        number=number,
        may_block=visit.allows(Scope.ADMIN),
    )


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


@page("/builders/{name}/review", post=True, scope=Scope.WRITE)
async def accept(visit: Visit) -> Response:
    """Accept a finding of this builder, with a reason."""
    form, builder = await visit.form(), await visit.find()
    new = NewAcceptance(
        form.get("fingerprint", ""),
        form.get("reason", "").strip(),
        visit.now + BLOCK_SPAN if form.get("block", "") == "yes" else None,
        as_admin=visit.allows(Scope.ADMIN),
    )
    number = await verdicts.accept(visit.application, visit.caller, builder.id, new, visit.now)
    return see_other(f"/builders/{builder.name}/review", version=str(number), done="accepted")


@page("/builders/{name}/qa")
async def show_qa(visit: Visit) -> Response:
    """Show what QA says of a version."""
    number, tenant = number_in(visit.request.query_params.get("version"), None), visit.token.tenant_id
    frame, view = await read_frame(visit, lambda uow, frame: qa.get(uow, tenant, frame.builder.id, number))
    return await builder_page(visit, "qa.html", "qa", frame, view=view, report=view.report)


@page("/builders/{name}/qa", post=True, scope=Scope.WRITE)
async def judge_again(visit: Visit) -> Response:
    """Judge the running app anew, and make a new report."""
    builder = await visit.find()
    await qa.again(visit.application, visit.caller, builder.id)
    return see_other(f"/builders/{builder.name}/qa", done="qa")
