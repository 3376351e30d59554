"""Tools that start, stop and delete."""

from __future__ import annotations

from typing import Annotated

from mcp_types import CallToolResult
from pydantic import Field

from builderd.client._async.builder import AsyncBuilder
from builderd.mcp.calls import Call
from builderd.mcp.results import Deleted, Deployment, Failure, deployment_of, failed, result
from builderd.mcp.tools.arguments import Name


async def start_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Deployment]:
    """Start a stopped deployment and wait until it is up."""
    builder = await call.deployment(deployment)
    async with call.progress("the start"):
        return _shown(await builder.start())


async def stop_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Deployment]:
    """Stop a deployment. Its files stay, and it costs less."""
    builder = await call.deployment(deployment)
    async with call.progress("the stop"):
        return _shown(await builder.stop())


async def restart_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Deployment]:
    """Stop a deployment if it runs, and start it, such as after store_credentials."""
    builder = await call.deployment(deployment)
    async with call.progress("the restart"):
        return _shown(await builder.restart())


async def set_auto_stop(
    call: Call, deployment: Name, minutes: Annotated[int, Field(ge=0, description="0: never.")]
) -> Annotated[CallToolResult, Deployment]:
    """Set after how many minutes without use it stops by itself. The next request wakes it."""
    builder = await call.deployment(deployment)
    await builder.set_auto_stop(minutes)
    after = f"after {minutes} minutes without use" if minutes else "never"
    return result(f"{builder.name} stops by itself {after}.", deployment_of(builder.data))


async def delete_deployment(
    call: Call,
    deployment: Name,
    confirm: Annotated[str, Field(description="The deployment's name, once the user has agreed.")] = "",
    purge: Annotated[bool, Field(description="Delete its backups too, and take no last one.")] = False,
) -> Annotated[CallToolResult, Deleted]:
    """Delete a deployment with its files. Without confirm it only says what it would do."""
    builder = await call.deployment(deployment)
    if confirm != builder.name:
        return failed(_unconfirmed(builder, purge=purge))
    async with call.progress("the deletion"):
        await builder.delete(purge=purge)
    kept = "Its backups are deleted too." if purge else "A last backup is kept for a while."
    return result(f"{builder.name} is deleted. {kept}", Deleted(name=builder.name, uuid=builder.uuid, purged=purge))


def _unconfirmed(builder: AsyncBuilder, *, purge: bool) -> Failure:
    backups = "with all its backups, for good" if purge else "after a last backup"
    return Failure(
        code="confirmation_needed",
        message=f"Nothing was deleted. This would delete {builder.name} ({builder.status}, version {builder.version}, "
        f"{builder.url}) with all files on its disk, {backups}.",
        next_step=f"Ask the user. If the user agrees, call delete_deployment again with confirm={builder.name!r}.",
        deployment=builder.uuid,
    )


def _shown(builder: AsyncBuilder) -> CallToolResult:
    return result(f"{builder.name} is {builder.status}.", deployment_of(builder.data))
