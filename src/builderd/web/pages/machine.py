"""The machine, for its operator: health, capacity, and all tenants. Needs the scope ``operator``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from builderd import __version__
from builderd.domain.builders import Status
from builderd.domain.resources import Allocation
from builderd.domain.tokens import Scope, Tenant
from builderd.store import UnitOfWork
from builderd.web.charts import share
from builderd.web.visits import Visit, page

#: Tenants that are listed, the first made first.
SHOWN_TENANTS = 200


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the service, and whether it is ready."""

    name: str
    ready: bool
    message: str


@dataclass(frozen=True, slots=True)
class Gauge:
    """A resource: how much is promised to builders, and how much there is (None: not known)."""

    name: str
    promised: float
    total: float | None

    @property
    def share(self) -> float:
        return share(self.promised, self.total) if self.total else 0.0


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant, and what is reserved for its builders."""

    tenant: Tenant
    allocation: Allocation


async def show_machine(visit: Visit) -> Response:
    """Show health, capacity and tenants."""
    application = visit.application
    engine = application.engine.readiness()
    previews = await application.previews.ready()
    faults = await application.store.schema_differences()
    parts = (
        Part("database", not faults, "; ".join(faults) or "it answers"),
        Part("engine", engine.ready, engine.message),
        Part("previews", previews, "the proxy answers" if previews else "the proxy does not answer"),
    )

    def look(uow: UnitOfWork) -> tuple[Mapping[Status, int], Allocation, Sequence[TenantRow], int]:
        tenants = uow.tenants.all()
        rows = [TenantRow(one, uow.builders.allocated(one.id)) for one in tenants[:SHOWN_TENANTS]]
        return uow.builders.count_by_status(), uow.builders.allocated(), rows, len(tenants)

    counts, allocated, tenants, total = await visit.read(look)
    capacity = application.engine.capacity()
    gauges = (
        Gauge("vCPU", allocated.cpu, capacity.cpu),
        Gauge("Memory, GB", allocated.memory, capacity.memory),
        Gauge("Disk, GB", allocated.disk, capacity.disk),
    )
    return await visit.page(
        "machine.html",
        parts=parts,
        gauges=gauges,
        counts=sorted(counts.items()),
        running=allocated.running_builders,
        tenants=tenants,
        total=total,
        version=__version__,
        readings=len(application.usage.all()),
    )


ROUTES = [page("/machine", show_machine, scope=Scope.OPERATOR)]
