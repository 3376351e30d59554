"""Tools that deploy: a new deployment, a new version, an old version; and those that show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Unpack

from mcp_types import CallToolResult
from pydantic import Field

from builderd.client._async.builder import AsyncBuilder
from builderd.client._async.deployments import AsyncDeployment
from builderd.client.errors import BuilderdError, NameTaken
from builderd.client.models import BuilderState
from builderd.client.options import RequestPath, api_path
from builderd.mcp.calls import Call
from builderd.mcp.failures import failure_of_state
from builderd.mcp.results import (
    FAILED,
    Deployment,
    DeploymentDetails,
    DeploymentList,
    Version,
    deployment_of,
    failed,
    given,
    result,
)
from builderd.mcp.tools.arguments import (
    AutoStop,
    File,
    Files,
    JobType,
    Key,
    Name,
    Settings,
    Upload,
    Wait,
    body_of,
    hash_of,
)

PER_PAGE = 25
MAX_VERSIONS = 10
AT_ONCE = {"Prefer": "respond-async"}


async def deploy_code(
    call: Call,
    name: Annotated[str, Field(description="Lower-case letters, digits and hyphens.")],
    files: Files | None = None,
    job_type: JobType | None = None,
    auto_stop_minutes: AutoStop | None = None,
    upload_id: Upload | None = None,
    idempotency_key: Key | None = None,
    wait: Wait = True,
    **settings: Unpack[Settings],
) -> Annotated[CallToolResult, Deployment]:
    """Turn code into a running, isolated app with a live URL, and wait until it is up.

    What starts it is detected in the code unless entrypoint is given; detected in the result says what was found.
    A failed stage (review, install, build, release, start, qa) is returned with its reason and the app's output.
    Calling it again with the same name and files never makes a second deployment. Use redeploy to change one that runs.
    """
    new = given(name=name, job_type=job_type, auto_stop_interval=auto_stop_minutes)
    body, key = {**new, **body_of(files, upload_id, settings)}, idempotency_key or call.key
    try:
        state = await _send(call, "POST", api_path("builders"), body, key, wait=wait)
    except NameTaken as taken:
        return await _same_deployment(call, taken, files or {}, wait=wait)
    return _deployed(state)


async def redeploy(
    call: Call,
    deployment: Name,
    files: Files | None = None,
    fresh: Annotated[bool, Field(description="Install the dependencies again.")] = False,
    upload_id: Upload | None = None,
    idempotency_key: Key | None = None,
    wait: Wait = True,
    **settings: Unpack[Settings],
) -> Annotated[CallToolResult, Deployment]:
    """Deploy a new version: files replace all earlier ones, settings that are left out stay.

    The old version serves until the new one does, and goes on if the new one fails. The app's own data stays.
    """
    builder = await call.deployment(deployment)
    path, key = api_path("builders", builder.uuid), idempotency_key or call.key
    body = body_of(files, upload_id, settings)
    return _deployed(await _send(call, "PUT", path, body, key, wait=wait, **given(fresh=fresh or None)))


async def rollback_deployment(
    call: Call,
    deployment: Name,
    version: Annotated[int, Field(ge=1, description="Default: the one before the current.")] | None = None,
    idempotency_key: Key | None = None,
) -> Annotated[CallToolResult, Deployment]:
    """Deploy the code and settings of an old version again. What the app wrote stays."""
    builder = await call.deployment(deployment)
    async with call.progress("the rollback") as progress:
        await builder.rollback(version, idempotency_key=idempotency_key or call.key, on_stage=progress.stage)
    return _deployed(builder.data)


async def list_deployments(
    call: Call,
    status: Annotated[str, Field(description="Such as running, stopped, failed.")] | None = None,
    job_type: JobType | None = None,
    page: Annotated[int, Field(ge=1)] = 1,
) -> Annotated[CallToolResult, DeploymentList]:
    """List the deployments, newest first, 25 a page."""
    found, total = await call.client.builders.list(status=status, job_type=job_type).page(page, PER_PAGE)
    shown = DeploymentList(deployments=[deployment_of(one.data) for one in found], page=page, total=total)
    lines = [f"{one.name}: {one.status}, version {one.version}, {one.url}" for one in found]
    more = [f"Page {page} of {total} deployments: call again with page={page + 1}."] if page * PER_PAGE < total else []
    return result("\n".join([*lines, *more]) or "There are no deployments.", shown)


async def get_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, DeploymentDetails]:
    """Show a deployment: its status with the reason, URL, settings, gates, costs and newest versions."""
    builder = await call.deployment(deployment)
    versions, _ = await builder.versions().page(per_page=MAX_VERSIONS)
    shown = DeploymentDetails(deployment=deployment_of(builder.data), versions=[Version.of(one) for one in versions])
    reason = shown.deployment.status_reason
    text = f"{builder.name} is {builder.status} (version {builder.version}) at {builder.url}."
    return result(text, shown, quoted=reason) if "<app-data" in reason else result(f"{text} {reason}", shown)


async def _send(
    call: Call, method: str, path: RequestPath, body: Mapping[str, Any], key: str | None, *, wait: bool, **params: Any
) -> BuilderState:
    """Send a call that deploys, with progress; unless ``wait``, return what it has begun."""
    if wait:
        async with call.progress("the deployment") as progress:
            deployment = AsyncDeployment(call.client._transport, key, progress.stage)
            return await deployment.run(method, path, body, params)
    headers = {**AT_ONCE, **({"Idempotency-Key": key} if key else {})}
    options = {"json": body, "params": params, "headers": headers}
    return await call.client._transport.read(BuilderState, method, path, **options)


async def _same_deployment(
    call: Call, taken: NameTaken, files: Mapping[str, str | File], *, wait: bool
) -> CallToolResult:
    """Answer with the builder that has the name, if it has these files: the call is a retry. Else raise ``taken``."""
    if not taken.builder:
        raise taken
    builder = await call.deployment(taken.builder)
    versions, _ = await builder.versions().page(per_page=1)
    if not files or not versions or versions[0].bundle != hash_of(files):
        raise taken
    if wait:
        async with call.progress("the deployment"):
            await builder.wait()
    if builder.status != FAILED:
        return _deployed(builder.data, "It was deployed before with the same files.")
    return failed(failure_of_state(builder.data, versions[0], await _log_tail(builder)))


async def _log_tail(builder: AsyncBuilder) -> str:
    try:
        return "\n".join([line.text async for line in builder.logs(tail=20)])
    except BuilderdError:
        return ""


def _deployed(state: BuilderState, note: str = "") -> CallToolResult:
    if state.job_type in ("always_on", "static"):
        text = f"{state.name} is {state.status} at {state.preview_url} (version {state.version})."
    else:
        text = f"The {state.job_type} {state.name} is {state.status} (version {state.version})."
    verdict = {True: " QA passed.", False: " QA failed: see get_qa_report.", None: ""}[state.qa_passed]
    return result(f"{text}{verdict} {note}".strip(), deployment_of(state))
