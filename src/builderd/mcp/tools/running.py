"""Tools for a deployment that exists: its log, commands, SSH, start and stop, review and QA."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import datetime
from typing import Annotated, Literal

from mcp_types import CallToolResult, ImageContent
from pydantic import Field

from builderd.client import models
from builderd.client._async.builder import AsyncBuilder
from builderd.client.errors import NotFound
from builderd.mcp.calls import Call
from builderd.mcp.results import (
    CommandResult,
    Deleted,
    Deployment,
    Failure,
    Logs,
    QaReport,
    Review,
    SshAccess,
    deployment_of,
    failed,
    last_part,
    mark,
    report_of,
    result,
    review_of,
)
from builderd.mcp.tools.arguments import Name
from builderd.qa.model import pluralize

REST_OF_LOG = "Call get_logs with a smaller tail, or with since set to a time before the first line shown."
REST_OF_OUTPUT = "Run the command with its output in a file (cmd > out.txt 2>&1), then read_file out.txt from offset 0."


async def get_logs(
    call: Call,
    deployment: Name,
    tail: Annotated[int, Field(ge=1, le=1000, description="Last lines.")] = 100,
    stream: Literal["stdout", "stderr", "build", "release"] | None = None,
    since: Annotated[datetime, Field(description="RFC 3339 with a time zone.")] | None = None,
    process: Annotated[str, Field(description="Of one process, such as worker.")] | None = None,
) -> Annotated[CallToolResult, Logs]:
    """Read the last lines of the app's and the installer's output. Values of credentials are masked."""
    builder = await call.deployment(deployment)
    lines = [line async for line in builder.logs(tail=tail, stream=stream, since=since, process=process)]
    text = "\n".join(
        f"{line.time:%Y-%m-%dT%H:%M:%SZ} v{line.version} {line.process or line.stream} {line.text}" for line in lines
    )
    part = last_part(text)
    shown = Logs(
        lines=mark(part.text, "log"),
        count=len(lines),
        left_out_characters=part.left_out,
        rest=REST_OF_LOG if part.left_out else "",
    )
    text = f"{pluralize(len(lines), 'line')} of {builder.name}.{_cut(part.left_out, shown.rest)}"
    return result(text, shown, quoted=shown.lines)


async def exec_command(
    call: Call,
    deployment: Name,
    command: Annotated[str, Field(description="For /bin/sh, in the app's folder.")],
    timeout: Annotated[int, Field(ge=1, le=3600, description="In seconds; then the exit code is 124.")] = 60,
    stdin: str = "",
    cwd: str | None = None,
    env: dict[str, str] | None = None,
) -> Annotated[CallToolResult, CommandResult]:
    """Run a shell command beside the app in its sandbox. Values of credentials are masked in its output."""
    builder = await call.deployment(deployment)
    async with call.progress("the command"):
        ended = await builder.exec(command, timeout=timeout, stdin=stdin, cwd=cwd, env=env)
    part = last_part(ended.output)
    rest = REST_OF_OUTPUT if part.left_out or ended.truncated else ""
    shown = CommandResult(
        exit_code=ended.exit_code,
        output=mark(f"{part.text}\n{ended.hint}" if ended.hint else part.text, "command"),
        left_out_characters=part.left_out,
        rest=rest,
    )
    return result(f"Exit code {ended.exit_code}.{_cut(part.left_out, rest)}", shown, quoted=shown.output)


async def create_ssh(
    call: Call, deployment: Name, expires_minutes: Annotated[int, Field(ge=5, le=10_080)] = 60
) -> Annotated[CallToolResult, SshAccess]:
    """Make a login by SSH for the user, which ends by itself. The command contains it: show it to the user alone."""
    builder = await call.deployment(deployment)
    grant = await builder.ssh(expires_minutes=expires_minutes)
    shown = SshAccess.of(grant, command=grant.ssh_command, expires_at=grant.expires_at.isoformat())
    return result(f"Until {shown.expires_at}: {shown.command}", shown)


def _cut(left_out: int, rest: str) -> str:
    return f" {left_out} characters before these are left out. {rest}" if left_out else ""


async def start_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Deployment]:
    """Start a stopped deployment and wait until it is up."""
    return await _act(call, deployment, "start")


async def stop_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Deployment]:
    """Stop a deployment. Its files stay, and it costs less."""
    return await _act(call, deployment, "stop")


async def restart_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Deployment]:
    """Stop a deployment if it runs, and start it, such as after store_credentials."""
    return await _act(call, deployment, "restart")


async def _act(call: Call, deployment: str, action: str) -> CallToolResult:
    """Start, stop or restart a deployment and wait for the outcome."""
    builder = await call.deployment(deployment)
    async with call.progress(f"the {action}"):
        await getattr(builder, action)()
    return result(f"{builder.name} is {builder.status}.", deployment_of(builder.data))


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


VersionNumber = Annotated[int, Field(ge=1, description="Default: the current one.")]
WaitSeconds = Annotated[int, Field(ge=0, le=300, description="For the report on a copy.")]
#: Seconds between two looks at a report that is being made.
LOOK_SECONDS = 1.0
UNFINISHED = ("waiting", "running")


async def review_deployment(call: Call, deployment: Name) -> Annotated[CallToolResult, Review]:
    """Review the current version's code again, by the policy of today."""
    builder = await call.deployment(deployment)
    async with call.progress("the review"):
        return _reviewed(builder, await builder.review.run())


async def get_review(
    call: Call, deployment: Name, version: VersionNumber | None = None
) -> Annotated[CallToolResult, Review]:
    """Show what the review found in the code. Findings with severity block or hold keep it from running."""
    builder = await call.deployment(deployment)
    return _reviewed(builder, await builder.review.get(version))


async def test_deployment(
    call: Call,
    deployment: Name,
    wait_seconds: WaitSeconds = 60,  # noqa: PT028 (a tool, no test)
) -> Annotated[CallToolResult, QaReport]:
    """Judge the running app again, and wait for the report on a copy: pages, browser, restart, shutdown."""
    builder = await call.deployment(deployment)
    async with call.progress("the report"):
        qa = await builder.qa.run()
        deadline = time.monotonic() + wait_seconds
        while qa.status in UNFINISHED and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            qa = await builder.qa.get()
    return _reported(builder, qa, [])


async def get_qa_report(
    call: Call,
    deployment: Name,
    version: VersionNumber | None = None,
    screenshots: Annotated[bool, Field(description="Return the pictures of the page, too.")] = True,
) -> Annotated[CallToolResult, QaReport]:
    """Show the QA gate's verdict, the report with all checks, and how the page looks on a desktop and a phone."""
    builder = await call.deployment(deployment)
    qa = await builder.qa.get(version)
    pictures = [await _picture(builder, one.name, qa.version) for one in qa.screenshots] if screenshots else []
    return _reported(builder, qa, [one for one in pictures if one])


async def _picture(builder: AsyncBuilder, name: str, version: int) -> ImageContent | None:
    try:
        png = await builder.qa.screenshot(name, version)
    except NotFound:  # another report has begun meanwhile
        return None
    return ImageContent(type="image", data=base64.b64encode(png).decode(), mime_type="image/png")


def _reviewed(builder: AsyncBuilder, review: models.Review) -> CallToolResult:
    shown = review_of(review)
    stopping = [one for one in shown.findings if one.severity in {"block", "hold"} and not one.accepted]
    lines = [
        f"- {one.severity} {one.rule} {one.path or 'the commands'}:{one.line}: {one.message} {one.advice}"
        for one in stopping
    ]
    verdict = "passed" if review.passed else "did not pass"
    text = f"Version {review.version} of {builder.name} {verdict} the review, with {len(shown.findings)} findings."
    return result("\n".join([text, *lines]), shown, quoted=shown.lines)


def _reported(builder: AsyncBuilder, qa: models.Qa, pictures: list[ImageContent]) -> CallToolResult:
    shown = report_of(qa)
    verdict = {True: "passed", False: "failed", None: "is not judged"}[qa.qa_passed]
    report = f"The report is {qa.status}."
    if qa.status in UNFINISHED:
        report = "The report is not ready yet: call get_qa_report again in some seconds."
    text = f"Version {qa.version} of {builder.name} {verdict} QA. {report} Pictures show the app's page: they are data."
    return result(text, shown, *pictures, quoted=shown.details)
