"""One call of a tool: its client, its progress, and its failures as results."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Self, get_args, get_type_hints

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations

from builderd import AsyncBuilderd
from builderd.client._async.builder import AsyncBuilder
from builderd.client.errors import BuilderdError
from builderd.client.models import Stage
from builderd.mcp.failures import failure_of
from builderd.mcp.results import Failure, failed

AnyContext = Context[Any, Any]
#: Opens the API for the token of a call.
Connect = Callable[[AnyContext], AbstractAsyncContextManager[AsyncBuilderd]]

READ = ToolAnnotations(read_only_hint=True, open_world_hint=False)
CHANGE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
MAKE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
DESTROY = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
RUN = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True)

#: Seconds between two signs of life, so that a client's timeout does not end a call that goes on.
BEAT_SECONDS = 10.0
#: Stages of a deployment: review, install, start, qa.
STAGES = 4
NAME = re.compile(r"[^A-Za-z0-9 ._/+-]")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool's call: ``client`` acts with the caller's token."""

    client: AsyncBuilderd
    context: AnyContext

    async def deployment(self, name: str) -> AsyncBuilder:
        """Return the builder of this name or uuid. Raises ``NotFound``."""
        return await self.client.builders.get(name)

    @property
    def key(self) -> str | None:
        """Key of the HTTP request with the message: a request that is sent again has the same."""
        return (self.context.headers or {}).get("idempotency-key")

    def progress(self, doing: str) -> Progress:
        """Return the progress of a long call, for a ``with`` block."""
        return Progress(self.context, doing)


class Progress:
    """Progress notifications of one call: each stage that ends, and a sign of life every ``BEAT_SECONDS``."""

    def __init__(self, context: AnyContext, doing: str) -> None:
        self._context = context
        self._doing = doing
        self._done = 0.0
        self._sent: set[asyncio.Future[None]] = set()
        self._beats: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._beats = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beats:
            self._beats.cancel()
        await asyncio.gather(*self._sent, *filter(None, [self._beats]), return_exceptions=True)

    def stage(self, stage: Stage) -> None:
        """Report a stage that has ended."""
        self._done = float(int(self._done) + 1)
        verb = "passed" if stage.ok else "failed"
        self._send(f"{stage.stage} {verb} after {stage.seconds:.1f} s")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._done = min(self._done + 0.01, int(self._done) + 0.99)
            self._send(f"{self._doing} goes on")

    def _send(self, message: str) -> None:
        self._sent.add(asyncio.ensure_future(self._context.report_progress(self._done, STAGES, message)))


Tool = Callable[..., Awaitable[CallToolResult]]


def bind(tool: Tool, connect: Connect) -> Tool:
    """Return a tool for the library: it takes the context in place of the ``Call``, and answers failures as results."""
    signature = inspect.signature(tool, eval_str=True)
    first, *others = signature.parameters.values()
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=Context)
    keywords = [keyword for one in others for keyword in _keywords(one)]

    async def run(**arguments: Any) -> CallToolResult:
        ctx: AnyContext = arguments.pop("ctx")
        try:
            async with connect(ctx) as client:
                return await tool(Call(client, ctx), **arguments)
        except BuilderdError as error:
            return failed(failure_of(error))
        except ValueError as error:
            return failed(Failure(code="validation_error", message=str(error), next_step="Correct the arguments."))

    described: Any = run
    described.__name__ = tool.__name__
    described.__doc__ = " ".join((tool.__doc__ or "").split())
    described.__signature__ = signature.replace(parameters=[*keywords, context])
    described.__annotations__ = {one.name: one.annotation for one in (*keywords, context)}
    assert first.name == "call"
    return run


def _keywords(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Return a parameter by keyword; of ``**options`` each one that its ``TypedDict`` has, None unless given."""
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    (options,) = get_args(parameter.annotation)
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind | None)
        for name, kind in get_type_hints(options, include_extras=True).items()
    ]


def client_name(context: AnyContext) -> str:
    """Return the agent's program for events: ``mcp`` and its name, from the protocol or the ``User-Agent``."""
    params = context.session.client_params
    headers = context.headers or {}
    name = params.client_info.name if params and params.client_info else headers.get("user-agent", "").partition("/")[0]
    return f"mcp {NAME.sub('', name)}"[:60].strip()
