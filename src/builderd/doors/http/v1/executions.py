"""Executions: a command run beside the app."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from builderd.doors.http import openapi
from builderd.doors.http.answers import success
from builderd.doors.http.auth import TheApplication, Writer
from builderd.doors.http.bodies import Received, json_body
from builderd.doors.http.v1 import PREFIX
from builderd.doors.http.v1.builders import Uuid
from builderd.services import executions
from builderd.wire.v1.executions import Execution, ExecutionAnswer, NewExecution

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

#: A command has at most 100,000 bytes, of which JSON can make six each.
MAX_BODY_BYTES = 1_000_000

Body = Annotated[Received[NewExecution], Depends(json_body(NewExecution, MAX_BODY_BYTES))]


@router.post(
    "/builders/{uuid}/exec",
    response_model=None,
    responses={
        **openapi.answer(200, ExecutionAnswer, "The command ended, or its timeout ended it."),
        **openapi.failures(400, 401, 403, 404, 409, 413, 422),
    },
    openapi_extra=openapi.body_of(NewExecution, {"command": "ls -l", "timeout": 60}),
)
async def run_command(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
    """Run a command beside the app, with its environment and in its folder, and wait for it."""
    new = body.value
    result = await executions.run(application, identity.token.tenant_id, uuid.lower(), new.command, new.timeout)
    data = Execution(exit_code=result.exit_code, output=result.output, truncated=result.truncated)
    message = f"The command ended with exit code {result.exit_code}."
    return success(ExecutionAnswer(message=message, data=data)).response()
