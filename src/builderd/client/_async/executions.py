"""Commands beside an app, run to their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from builderd.client._async.transport import AsyncTransport, parsed
from builderd.client.errors import NoAnswer, error_of
from builderd.client.models import Execution
from builderd.client.paths import api_path


class ExecOptions(TypedDict, total=False):
    """Options of ``builder.exec``; ``timeout`` in seconds, by default 60.

    ``separate`` keeps standard error apart, in ``stderr``. ``on_output`` gets each piece of the output as it comes, and
    ``on_errors``, which goes with it, those of standard error; ``output`` is empty then.
    """

    timeout: int
    stdin: str
    cwd: str | None
    env: Mapping[str, str] | None
    separate: bool
    on_output: Callable[[str], None] | None
    on_errors: Callable[[str], None] | None


async def execute(transport: AsyncTransport, uuid: str, command: str, options: ExecOptions) -> Execution:
    """Run a command and wait for its end."""
    on_output, on_errors = options.get("on_output"), options.get("on_errors")
    body: dict[str, Any] = {
        "command": command,
        "timeout": options.get("timeout", 60),
        "stdin": options.get("stdin", ""),
        "env": dict(options.get("env") or {}),
    }
    if (cwd := options.get("cwd")) is not None:
        body["cwd"] = cwd
    if options.get("separate") or on_errors is not None:
        body["separate"] = True
    path = api_path("builders", uuid, "exec")
    if on_output is None:
        return await transport.read(Execution, "POST", path, json=body, waits=True)
    async with transport.events("POST", path, json={**body, "stream": True}, deadline=transport.deadline()) as events:
        async for event in events:
            if event is None:
                continue
            if event.name == "exit":
                return parsed(Execution, {**event.json(), "output": "", "stderr": ""})
            if event.name == "failed":
                raise error_of(event.json(), request_id=events.request_id)
            piece = event.json()
            is_error = on_errors is not None and piece.get("stream") == "stderr"
            (on_errors if is_error and on_errors else on_output)(piece["text"])
    raise NoAnswer("the stream ended before the command did", builder=uuid)
