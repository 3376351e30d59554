"""Executions: a command run beside the app."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from builderd.api import openapi
from builderd.api.server.answers import failure
from builderd.api.server.auth import TheApplication, Writer, operations_of
from builderd.api.server.bodies import Received, json_body
from builderd.api.server.limits import Turns
from builderd.api.server.paths import PREFIX
from builderd.api.server.streams import ResourceStream, event, stream
from builderd.api.v1.builders import Uuid
from builderd.domain.errors import BuilderdError
from builderd.domain.ids import TenantId
from builderd.domain.sandboxes import ExecResult
from builderd.schemas.v1.running import ExecutionAnswer, NewExecution
from builderd.services import executions
from builderd.services.application import Application
from builderd.services.builders import Caller

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

#: A command has at most 100,000 bytes and its input 1,000,000, of which JSON can make six each.
MAX_BODY_BYTES = 8_000_000
#: So much of an output is made JSON at once.
PIECE = 1 << 14
#: An output up to here is answered whole, and not counted among the bytes that its tenant holds while it is sent.
SHORT = 1 << 12

Body = Annotated[Received[NewExecution], Depends(json_body(NewExecution, MAX_BODY_BYTES))]

STREAM = (
    "With `stream`: an `output` event (`text`, with `separate` also `stream`: `stdout` or `stderr`) per piece of "
    "output, then `exit` (`exit_code`, `truncated`, `hint`), or `failed` when it could not begin."
)


@router.post(
    "/builders/{uuid}/exec",
    responses=openapi.answers(
        200,
        ExecutionAnswer,
        "The command ended, or its timeout ended it.",
        400,
        404,
        409,
        413,
        422,
        content=openapi.events(STREAM),
    ),
    openapi_extra=openapi.body_of(NewExecution, {"command": "ls -l", "timeout": 60}),
)
async def run_command(
    request: Request, application: TheApplication, identity: Writer, uuid: Uuid, body: Body
) -> Response:
    """Run a command beside the app, with its environment and in its folder, and wait for it.

    Of its output, both streams as they come (apart with `separate`), 10 MB are kept. A stream that its reader leaves
    ends the command.
    """
    new, caller, uuid = body.value, identity.caller, uuid.lower()
    if not new.stream:
        return await _run(request, application, caller, uuid, new)
    sandbox = await executions.running(application, caller, uuid)
    held_bytes, encoding = operations_of(request).held_bytes, request.app.state.encoding
    pieces = executions.follow(application, caller, sandbox, _command_of(new), held_bytes)
    return stream(_events(pieces, encoding, caller.tenant_id, separate=new.separate))


def _command_of(new: NewExecution) -> executions.Command:
    return executions.Command(new.command, new.timeout, new.stdin.encode(), new.cwd, new.env, new.separate)


async def _run(request: Request, application: Application, caller: Caller, uuid: str, new: NewExecution) -> Response:
    held_bytes = operations_of(request).held_bytes
    encoding: Turns = request.app.state.encoding
    async with AsyncExitStack() as stack:
        running = executions.run(application, caller, uuid, _command_of(new), held_bytes)
        ended = await stack.enter_async_context(running)
        if ended.output.size <= SHORT:
            return Response(_short_answer(ended), 200, media_type="application/json")
        return ResourceStream(stack.pop_all(), _answer(ended, encoding, caller.tenant_id), 200, {}, "application/json")


def _head(ended: executions.Ended) -> str:
    """Return the beginning of an ``ExecutionAnswer``, up to the text of its output."""
    message = json.dumps(f"The command ended with exit code {ended.exit_code}.")
    return f'{{"success":true,"message":{message},"data":{{"exit_code":{ended.exit_code},"output":"'


def _tail(ended: executions.Ended) -> str:
    return f',"truncated":{json.dumps(ended.output.truncated)},"hint":{json.dumps(ended.hint)}}}}}'


def _short_answer(ended: executions.Ended) -> str:
    """Return the whole ``ExecutionAnswer``."""
    output, errors = (
        json.dumps("".join(ended.output.pieces(SHORT, errors=is_error)), ensure_ascii=False)
        for is_error in (False, True)
    )
    return f'{_head(ended)}{output[1:]},"stderr":{errors}{_tail(ended)}'


async def _answer(ended: executions.Ended, encoding: Turns, tenant_id: TenantId) -> AsyncGenerator[str]:
    """An ``ExecutionAnswer`` in pieces: as JSON the output may be six times as long."""
    text = _head(ended)
    for is_error in (False, True):
        for piece in ended.output.pieces(PIECE, errors=is_error):
            await encoding.wait(tenant_id)
            text += json.dumps(piece, ensure_ascii=False)[1:-1]
            if len(text) >= PIECE:
                yield text
                text = ""
        text += '"' if is_error else '","stderr":"'
    yield text + _tail(ended)


async def _events(
    pieces: AsyncGenerator[executions.Text | ExecResult],
    encoding: Turns,
    tenant_id: TenantId,
    *,
    separate: bool,
) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ExecResult):
                    yield event(
                        "exit", {"exit_code": piece.exit_code, "truncated": piece.truncated, "hint": piece.hint}
                    )
                    return
                name = {"stream": "stderr" if piece.is_error else "stdout"} if separate else {}
                for start in range(0, len(piece.text), PIECE):
                    await encoding.wait(tenant_id)
                    yield event("output", {"text": piece.text[start : start + PIECE], **name})
    except BuilderdError as error:
        yield event("failed", failure(error).body)
