"""QA: the gate's checks of a version, the report on a copy, and its screenshots."""

from __future__ import annotations

from starlette.responses import Response

from builderd.domain.tokens import Scope
from builderd.services import qa
from builderd.services.qa import QaView
from builderd.store import UnitOfWork
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of
from builderd.web.visits import Visit, page, see_other


async def show_qa(visit: Visit) -> Response:
    """Show what QA says of a version."""
    text = visit.request.query_params.get("version", "")
    number = int(text) if text.isdecimal() and len(text) < 10 else None

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, QaView]:
        frame = frame_of(uow, visit)
        return frame, qa.get(uow, visit.token.tenant_id, frame.builder.id, number)

    frame, view = await visit.read(look)
    return await builder_page(visit, "qa.html", "qa", frame, view=view, report=view.report)


async def judge_again(visit: Visit) -> Response:
    """Judge the running app anew, and make a new report."""
    builder = await visit.find()
    await qa.again(visit.application, visit.caller, builder.id)
    return see_other(f"/builders/{builder.name}/qa", {"done": "qa"})


ROUTES = [
    page("/builders/{name}/qa", show_qa),
    page("/builders/{name}/qa", judge_again, post=True, scope=Scope.WRITE),
]
