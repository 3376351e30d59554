"""Forms and requests of the pages, checked by the API's shapes, as commands of the services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from builderd.api.server import requests
from builderd.api.server.body_parser import take
from builderd.domain.builders import Builder
from builderd.domain.bundles import make_bundle
from builderd.domain.tokens import Scope
from builderd.domain.versions import Version
from builderd.operations.operations import sent_by
from builderd.schemas.v1.builders import NewBuilder
from builderd.schemas.v1.files import bundle_files
from builderd.schemas.v1.shape import Shape
from builderd.schemas.v1.versions import NewSettings, NewVersion, given_fields
from builderd.services import bundles, deployments, outcomes
from builderd.services.application import Application
from builderd.services.deployments import Change, Deployed
from builderd.store import UnitOfWork
from builderd.web.visits import Visit

S = TypeVar("S", bound=Shape)


def shape_of(application: Application, shape: type[S], values: Mapping[str, Any]) -> S:
    """Return the values as this shape of the API. Raises ``ValidationFailed``."""
    return take(shape, json.dumps(values).encode(), {"maximum": application.limits.maximum})


async def create(visit: Visit, new: NewBuilder) -> Builder:
    """Create a builder. Raises what the services raise, and ``Forbidden`` for a gate left out without the scope."""
    _check_gates(visit, new)
    application = visit.application
    bundle = await requests.bundle_of(application, visit.token.tenant_id, new)
    asked = await requests.new_builder(application, new, bundle)
    return await visit.operations.create(visit.caller, asked, bundle, None)


async def deploy(visit: Visit, builder: Builder, new: NewVersion) -> Deployed:
    """Deploy new code, with the settings that it brings. Raises as ``create`` does."""
    _check_gates(visit, new)
    application = visit.application
    change, bundle = await requests.new_version(application, visit.caller, builder.id, new)
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.deploy(uow, application, visit.caller, builder.id, change, visit.now),
        None,
        sent_by(visit.caller, bundle),
    )


async def configure(visit: Visit, builder: Builder, values: Mapping[str, Any]) -> Deployed:
    """Change settings: at once where the app need not know of them, else by a new version of the same code."""
    application = visit.application
    new = shape_of(application, NewSettings, values)
    change = Change.of(given_fields(new))
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.configure(uow, application, visit.caller, builder.id, change, visit.now),
        None,
    )


async def roll_back(visit: Visit, builder: Builder, number: int) -> Deployed:
    """Deploy the code and settings of an old version again."""
    application = visit.application
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.roll_back(uow, application, visit.caller, builder.id, number, visit.now),
        None,
    )


async def renew_service_token(visit: Visit, builder: Builder) -> Builder:
    """Make a new service token; the old one ends."""
    application = visit.application

    def renew(uow: UnitOfWork) -> Builder:
        return deployments.renew_service_token(uow, application, visit.caller, builder.id, visit.now)

    return await outcomes.after_take_over(application, builder.id, lambda: application.commit(renew))


def _check_gates(visit: Visit, new: NewBuilder | NewVersion) -> None:
    if new.skip_review or new.skip_qa:
        visit.require(Scope.SKIP_GATES)


async def deploy_edited(
    visit: Visit, builder: Builder, version: Version, path: str, content: str, entrypoint: str
) -> Deployed:
    """Deploy the files of a version with one of them changed. Raises as ``deploy`` does."""
    application = visit.application
    new = shape_of(application, NewVersion, {"files": {path: content}, "entrypoint": entrypoint})
    base = await bundles.fetch(application, version)
    (edited,) = bundle_files(new.files)
    old = next((file for file in base.files if file.path == path), None)
    if old is not None:
        edited = replace(edited, executable=old.executable)
    files = [*(file for file in base.files if file.path != path), edited]
    bundle = await asyncio.to_thread(make_bundle, files)
    change = Change.of({"bundle_hash": bundle.hash, "entrypoint": new.entrypoint})
    return await visit.operations.change(
        builder.id,
        lambda uow: deployments.deploy(uow, application, visit.caller, builder.id, change, visit.now),
        None,
        sent_by(visit.caller, bundle),
    )
