"""Kept results of builds: remove them."""

from __future__ import annotations

from fastapi import APIRouter, Response

from builderd.api import openapi
from builderd.api.server.answers import success
from builderd.api.server.auth import TheApplication, Writer
from builderd.api.server.paths import PREFIX
from builderd.api.v1.builders import Uuid
from builderd.schemas.v1.backups import RemovedBuilds, RemovedBuildsAnswer
from builderd.services import deployments

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])


@router.delete(
    "/builders/{uuid}/build-cache", responses=openapi.answers(200, RemovedBuildsAnswer, "They are removed.", 404)
)
async def clear_build_cache(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Remove the kept results of the builds of its versions, which count for your layers.

    A version that runs or is stopped keeps its files. A rollback to another version builds it again.
    """
    removed = await deployments.remove(application, identity.caller, uuid.lower())
    data = RemovedBuilds(results=removed.results, bytes=removed.bytes)
    message = f"{removed.results} results of builds are removed."
    return success(RemovedBuildsAnswer(message=message, data=data)).response()
