"""Results of builds that are kept in the store: they count for their tenant, which may remove them."""

from __future__ import annotations

from dataclasses import dataclass

from builderd.services import builders
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.store import UnitOfWork


@dataclass(frozen=True, slots=True)
class Removed:
    """Number of removed results, and their bytes."""

    results: int
    bytes: int


async def remove(application: Application, caller: Caller, builder_id: str) -> Removed:
    """Remove the kept results of the builder's versions. Raises ``NotFound``.

    No version loses what is on its disk; one that needs its result on another disk, such as by a rollback, is built
    again.
    """

    def load(uow: UnitOfWork) -> frozenset[str]:
        builder = builders.get(uow, caller.tenant_id, builder_id)
        return frozenset(version.build_key for version in uow.versions.list(builder.id) if version.build_key)

    keys = await application.store.read(load)
    if not keys:
        return Removed(0, 0)
    stored = (await application.engine.layers.stored_layers(keys)).layers
    removed = await application.engine.layers.collect_layers(stored.keys(), 0)
    return Removed(len(removed), sum(stored[key].bytes for key in removed))
