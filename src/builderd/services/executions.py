"""Executions: a command run beside the app, in its sandbox, or a session there."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from builderd.domain.ids import SandboxId
from builderd.domain.processes import HOME, TIMEOUT_EXIT_CODE, ProcessSpec, shell
from builderd.domain.sandboxes import ExecResult
from builderd.ports.engine import Engine
from builderd.ports.processes import Process
from builderd.services import builders, wake
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.services.wake import User

#: Past its limit an output is only taken away, and no faster than the service can bear, so that the command goes on.
DRAIN_SECONDS = 0.005
#: So many pieces of output may wait for who follows it.
AHEAD = 8

#: Told each piece of output that is kept; may take its time, which slows the command down.
Tell = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command line for ``/bin/sh``. ``timeout_seconds`` count from when it begins; ``env`` adds to the app's own."""

    text: str
    timeout_seconds: float = 60
    stdin: bytes = b""
    cwd: str = HOME
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> ProcessSpec:
        return ProcessSpec(shell(self.text), self.cwd, self.env, joined=True)


async def run(application: Application, caller: Caller, builder_id: str, command: Command) -> ExecResult:
    """Run it and wait. Raises ``NotFound``, ``InvalidState`` when no sandbox runs, or ``ValidationFailed``."""
    sandbox = await running(application, caller, builder_id)
    async with wake.going_on(application, sandbox):
        return await capture(application.engine, sandbox, command, application.limits.exec_output)


async def follow(application: Application, sandbox: SandboxId, command: Command) -> AsyncGenerator[str | ExecResult]:
    """Its output as it comes, and at last how it ended, without an output. Left early, the command is ended too."""
    pieces: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
    limit = application.limits.exec_output
    task = asyncio.ensure_future(capture(application.engine, sandbox, command, limit, tell=pieces.put))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        async with wake.going_on(application, sandbox):
            async for piece in _until_done(pieces, task):
                if text := decoder.decode(piece):
                    yield text
            result = await task
        if rest := decoder.decode(b"", final=not result.truncated):
            yield rest
        yield replace(result, output="")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_done(pieces: asyncio.Queue[bytes], task: asyncio.Future[ExecResult]) -> AsyncIterator[bytes]:
    while True:
        piece = asyncio.ensure_future(pieces.get())
        either: set[asyncio.Future[Any]] = {piece, task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not piece.done():
            piece.cancel()
            return
        yield piece.result()


@asynccontextmanager
async def session(
    application: Application, caller: Caller, builder_id: str, spec: ProcessSpec
) -> AsyncIterator[Process]:
    """A process that somebody talks to. Raises as ``run`` does."""
    sandbox = await running(application, caller, builder_id)
    async with wake.going_on(application, sandbox), application.engine.open_process(sandbox, spec) as process:
        yield process


async def running(application: Application, caller: Caller, builder_id: str) -> SandboxId:
    """The builder's sandbox, awake; this counts as a use of it. Raises ``NotFound`` or ``InvalidState``."""
    builder = await application.store.read(lambda uow: builders.get(uow, caller.tenant_id, builder_id))
    application.engine.announce()
    user = User(caller.actor, f"woken for a command by {caller.actor}")
    return (await wake.awake(application, builder.id, user)).id


async def capture(
    engine: Engine, sandbox: SandboxId, command: Command, limit_bytes: int, tell: Tell | None = None
) -> ExecResult:
    """Run it in this sandbox, to its end or its timeout's. Raises ``InvalidState`` when the sandbox does not run."""
    async with engine.open_process(sandbox, command.spec) as process:
        output = Output(limit_bytes, tell)
        feeding = asyncio.ensure_future(_feed(process, command.stdin))
        try:
            async with asyncio.timeout(command.timeout_seconds):
                await output.take(process)
                code = await process.wait()
        except TimeoutError:
            await process.kill()
            await output.take(process)
            code = TIMEOUT_EXIT_CODE
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return ExecResult(code, output.text, output.truncated)


async def _feed(process: Process, data: bytes) -> None:
    await process.write(data)
    process.close_input()


class Output:
    """What a command printed, up to a limit in bytes."""

    def __init__(self, limit: int, tell: Tell | None = None) -> None:
        self.truncated = False
        self._left = limit
        self._kept = bytearray()
        self._tell = tell or self._keep

    async def take(self, process: Process) -> None:
        """All that is to come."""
        while piece := await process.read():
            if kept := piece[: self._left]:
                self._left -= len(kept)
                await self._tell(kept)
            if len(kept) < len(piece):
                self.truncated = True
                await asyncio.sleep(DRAIN_SECONDS)

    async def _keep(self, piece: bytes) -> None:
        self._kept += piece

    @property
    def text(self) -> str:
        """A character that the limit cut in two is left out."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(bytes(self._kept), final=not self.truncated)
