"""Executions: a command run beside the app."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from builderd.domain.errors import BuilderdError
from builderd.domain.sandboxes import ExecResult
from builderd.doors.http import openapi
from builderd.doors.http.answers import failure, success
from builderd.doors.http.auth import TheApplication, Writer
from builderd.doors.http.bodies import Received, json_body
from builderd.doors.http.streams import event, stream
from builderd.doors.http.v1 import PREFIX
from builderd.doors.http.v1.builders import Uuid
from builderd.services import executions
from builderd.wire.v1.executions import Execution, ExecutionAnswer, NewExecution

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

#: A command has at most 100,000 bytes and its input 1,000,000, of which JSON can make six each.
MAX_BODY_BYTES = 8_000_000

Body = Annotated[Received[NewExecution], Depends(json_body(NewExecution, MAX_BODY_BYTES))]

STREAM = (
    "With `stream`: an `output` event (`text`) per piece of output, then `exit` (`exit_code`, `truncated`), "
    "or `failed` when it could not begin."
)


@router.post(
    "/builders/{uuid}/exec",
    response_model=None,
    responses={
        **openapi.answer(
            200, ExecutionAnswer, "The command ended, or its timeout ended it.", content=openapi.events(STREAM)
        ),
        **openapi.failures(400, 401, 403, 404, 409, 413, 422),
    },
    openapi_extra=openapi.body_of(NewExecution, {"command": "ls -l", "timeout": 60}),
)
async def run_command(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
    """Run a command beside the app, with its environment and in its folder, and wait for it.

    Of its output, both streams as they come, 10 MB are kept. A stream that its reader leaves ends the command.
    """
    new, caller, uuid = body.value, identity.caller, uuid.lower()
    command = executions.Command(new.command, new.timeout, new.stdin.encode(), new.cwd, new.env)
    if new.stream:
        sandbox = await executions.running(application, caller, uuid)
        return stream(_events(executions.follow(application, sandbox, command)))
    result = await executions.run(application, caller, uuid, command)
    data = Execution(exit_code=result.exit_code, output=result.output, truncated=result.truncated)
    message = f"The command ended with exit code {result.exit_code}."
    return success(ExecutionAnswer(message=message, data=data)).response()


async def _events(pieces: AsyncGenerator[str | ExecResult]) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield _event(piece)
    except BuilderdError as error:
        yield event("failed", failure(error).body)


def _event(piece: str | ExecResult) -> bytes:
    if isinstance(piece, str):
        return event("output", {"text": piece})
    return event("exit", {"exit_code": piece.exit_code, "truncated": piece.truncated})
