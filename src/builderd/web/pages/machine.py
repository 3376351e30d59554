"""The machine, for its operator: health, capacity, and all tenants. Needs the scope ``operator``."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from builderd import __version__
from builderd.domain.tokens import Scope
from builderd.store import UnitOfWork
from builderd.web.charts import share
from builderd.web.visits import Visit, page

#: Tenants that are listed, the first made first.
SHOWN_TENANTS = 200


@page("/machine", scope=Scope.OPERATOR)
async def show_machine(visit: Visit) -> Response:
    """Show health, capacity and tenants."""
    application = visit.application
    engine = application.engine.readiness()
    previews = await application.previews.ready()
    faults = await application.store.schema_differences()
    parts = (
        ("database", not faults, "; ".join(faults) or "it answers"),
        ("engine", engine.ready, engine.message),
        ("previews", previews, "the proxy answers" if previews else "the proxy does not answer"),
    )

    def look(uow: UnitOfWork) -> dict[str, Any]:
        tenants = uow.tenants.all()
        return {
            "counts": sorted(uow.builders.count_by_status().items()),
            "allocated": uow.builders.allocated(),
            "tenants": [
                {"tenant": one, "allocation": uow.builders.allocated(one.id)} for one in tenants[:SHOWN_TENANTS]
            ],
            "total": len(tenants),
        }

    found = await visit.read(look)
    allocated, capacity = found.pop("allocated"), application.engine.capacity()
    gauges = (
        ("vCPU", allocated.cpu, capacity.cpu),
        ("Memory, GB", allocated.memory, capacity.memory),
        ("Disk, GB", allocated.disk, capacity.disk),
    )
    return await visit.page(
        "machine.html",
        **found,
        parts=[{"name": name, "ready": ready, "message": message} for name, ready, message in parts],
        gauges=[
            {"name": name, "promised": promised, "total": total, "share": share(promised, total) if total else 0.0}
            for name, promised, total in gauges
        ],
        running=allocated.running_builders,
        version=__version__,
        readings=len(application.usage.all()),
    )
