"""Executions: commands and sessions in a builder's sandbox, and the memory that their output may take."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from builderd.application import Application
from builderd.builders import processes
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.builders.uses import User
from builderd.code.model import folder_of
from builderd.core.errors import InvalidState
from builderd.core.ids import SandboxId, TenantId
from builderd.core.loops import end_tasks
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.hints import start_hint
from builderd.engine.port import Process, Sandboxes
from builderd.executions.model import HOME, TIMEOUT_EXIT_CODE, ProcessSpec, shell
from builderd.idle import service as wake
from builderd.sandboxes.model import ExecResult, Sandbox, process_label
from builderd.versions.model import Version

#: Output past its limit is read and dropped, at a bounded rate, so that the command does not block.
DRAIN_SECONDS = 0.005
#: Maximum number of output pieces that wait for the follower.
AHEAD = 8


class Piece(NamedTuple):
    """Bytes that a command wrote, and whether to its standard error (only where the streams are kept apart)."""

    content: bytes
    is_error: bool = False


class Text(NamedTuple):
    """Text that a command wrote, and whether to its standard error."""

    text: str
    is_error: bool = False


#: Called with each piece of output that is kept; a slow callback slows the command down.
OnOutput = Callable[[Piece], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command line for ``/bin/sh``. ``timeout_seconds`` count from its start; ``env`` adds to the app's own.

    ``separate`` keeps its standard error apart from its standard output.
    """

    text: str
    timeout_seconds: float = 60
    stdin: bytes = b""
    cwd: str = HOME
    env: Mapping[str, str] = field(default_factory=dict)
    separate: bool = False

    @property
    def spec(self) -> ProcessSpec:
        return ProcessSpec(shell(self.text), self.cwd, self.env, joined=not self.separate)


@asynccontextmanager
async def run(
    application: Application,
    caller: Caller,
    builder_id: str,
    command: Command,
    memory: MemoryQuota,
    process: str = "",
) -> AsyncIterator[Ended]:
    """Run the command and wait for it. Its output counts in the tenant's ``memory`` while the context lasts.

    While the budget is used up, the command blocks on its full pipe, and its timeout continues. Raises ``NotFound``,
    ``InvalidState`` when no sandbox runs, or ``ValidationFailed``.
    """
    sandbox = await running(application, caller, builder_id, process)
    with memory.reserve(caller.tenant_id) as reservation:
        output = Output(application.limits.exec_output, reservation=reservation)
        async with wake.keep_awake(application, sandbox):
            code = await _capture(application.engine.sandboxes, sandbox, command, output)
        yield Ended(code, output, hint_of_command(code, output.end))


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended. ``exit_code`` 124 when the timeout killed it; ``hint`` as in ``ExecResult``."""

    exit_code: int
    output: Output
    hint: str = ""


async def follow(
    application: Application, caller: Caller, sandbox: SandboxId, command: Command, memory: MemoryQuota
) -> AsyncGenerator[Text | ExecResult]:
    """Yield output while the command runs, and finally how it ended, without output.

    Closing the generator early ends the command too.
    """
    pieces: asyncio.Queue[Piece] = asyncio.Queue(AHEAD)
    with memory.reserve(caller.tenant_id) as reservation:
        output, end = Output(application.limits.exec_output, pieces.put, reservation), ""
        task = asyncio.ensure_future(_capture(application.engine.sandboxes, sandbox, command, output))
        decoders = {is_error: codecs.getincrementaldecoder("utf-8")("replace") for is_error in (False, True)}
        try:
            async with wake.keep_awake(application, sandbox):
                async for piece in _until_done(pieces, task):
                    reservation.release(len(piece.content))
                    if text := decoders[piece.is_error].decode(piece.content):
                        end = (end + text)[-TAIL:]
                        yield Text(text, piece.is_error)
                code = await task
            for is_error, decoder in decoders.items():
                if rest := decoder.decode(b"", final=not output.truncated):
                    yield Text(rest, is_error)
            yield ExecResult(code, "", output.truncated, hint_of_command(code, end))
        finally:
            await end_tasks(task)


async def _until_done(pieces: asyncio.Queue[Piece], task: asyncio.Future[int]) -> AsyncIterator[Piece]:
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
    """Run an interactive process. Raises as ``run`` does."""
    sandbox = await running(application, caller, builder_id)
    async with (
        wake.keep_awake(application, sandbox),
        application.engine.sandboxes.open_process(sandbox, spec) as process,
    ):
        yield process


async def running(application: Application, caller: Caller, builder_id: str, process: str = "") -> SandboxId:
    """Return the builder's sandbox, awake, and record a use. Raises ``NotFound`` or ``InvalidState``.

    ``process``: the first sandbox of a further process, or the one of this label (``worker.2``).
    """
    own = await _running(application, caller, builder_id)

    def find(uow: UnitOfWork) -> Sandbox | None:
        builder = builders.get(uow, caller.tenant_id, builder_id)
        stored = processes.stored_name(uow, builder, process)
        found = (one for one in uow.sandboxes.all_open(builder.id) if stored in (one.process, process_label(one)))
        return next((one for one in found if one.started_at is not None), None)

    if not process:
        return own
    if (sandbox := await application.store.read(find)) is None:
        raise InvalidState(f"The process {process} does not run now: see process_states of the builder.")
    return sandbox.id


async def _running(application: Application, caller: Caller, builder_id: str) -> SandboxId:

    def find(uow: UnitOfWork) -> tuple[Builder, Sandbox | None]:
        builder = builders.get(uow, caller.tenant_id, builder_id)
        return builder, uow.sandboxes.open_of(builder.id)

    builder, sandbox = await application.store.read(find)
    # One command after the other writes nothing: a use was recorded, which keeps the builder awake.
    now = application.clock.now()
    is_used = builder.asleep_since is None and wake.is_recorded(application, builder, now)
    if is_used and sandbox is not None and await wake.is_up(application, builder, sandbox):
        return sandbox.id
    user = User(caller.actor, f"woken for a command by {caller.actor}")
    return (await wake.awake(application, builder.id, user)).id


async def capture(sandboxes: Sandboxes, sandbox: SandboxId, command: Command, limit_bytes: int) -> ExecResult:
    """Run the command in this sandbox to its end or timeout. Raises ``InvalidState`` without a running sandbox."""
    output = Output(limit_bytes)
    code = await _capture(sandboxes, sandbox, command, output)
    return ExecResult(code, output.text, output.truncated)


async def _capture(sandboxes: Sandboxes, sandbox: SandboxId, command: Command, output: Output) -> int:
    """Run the command and return its exit code."""
    async with sandboxes.open_process(sandbox, command.spec) as process, _fed(process, command.stdin):
        try:
            async with asyncio.timeout(command.timeout_seconds):
                await output.take(process, errors=command.separate)
                code = await process.wait()
        except TimeoutError:
            await process.kill()
            await output.take(process, errors=command.separate, wait=False)
            code = TIMEOUT_EXIT_CODE
    return code


@asynccontextmanager
async def _fed(process: Process, data: bytes) -> AsyncIterator[None]:
    """Write its input while the block lasts, and close it."""
    if not data:
        process.close_input()
        yield
        return
    feeding = asyncio.ensure_future(_feed(process, data))
    try:
        yield
    finally:
        await end_tasks(feeding)


async def _feed(process: Process, data: bytes) -> None:
    await process.write(data)
    process.close_input()


class Output:
    """Output of a command, up to a limit in bytes for both streams, counted in ``reservation``."""

    def __init__(
        self, limit: int, on_output: OnOutput | None = None, reservation: MemoryReservation | None = None
    ) -> None:
        self.truncated = False
        self._left = limit
        self._kept = {False: bytearray(), True: bytearray()}
        self._on_output = on_output or self._keep
        self._reservation = reservation

    async def take(self, process: Process, *, errors: bool, wait: bool = True) -> None:
        """Read all output, with ``errors`` that of the standard error too, if it is a stream of its own.

        When the tenant's budget is used up, wait for room, or (``wait`` False) cut it there.
        """
        if not errors:
            await self._take(process.read, wait, is_error=False)
            return
        task = asyncio.ensure_future(self._take(process.read_errors, wait, is_error=True))
        try:
            await self._take(process.read, wait, is_error=False)
            await task
        finally:
            await end_tasks(task)

    async def _take(self, read: Callable[[], Awaitable[bytes]], wait: bool, *, is_error: bool) -> None:
        while piece := await read():
            kept = piece[: self._left]
            self._left -= len(kept)
            if kept and await self._reserve(len(kept), wait):
                await self._on_output(Piece(kept, is_error))
            if len(kept) < len(piece) or self.truncated:
                self._cut()
                await asyncio.sleep(DRAIN_SECONDS)

    async def _reserve(self, size: int, wait: bool) -> bool:
        if self._reservation is None or self._reservation.try_reserve(size):
            return True
        try:
            if wait:
                await self._reservation.take(size)
                return True
        except asyncio.CancelledError:
            self._cut()
            raise
        self._cut()
        return False

    def _cut(self) -> None:
        """Drop all further output."""
        self.truncated, self._left = True, 0

    async def _keep(self, piece: Piece) -> None:
        self._kept[piece.is_error] += piece.content

    def pieces(self, size: int, *, errors: bool = False) -> Iterator[str]:
        """Yield the text, decoded ``size`` bytes at a time; with ``errors`` that of the standard error.

        A character that the limit cut in two is left out.
        """
        decoder, kept = codecs.getincrementaldecoder("utf-8")("replace"), self._kept[errors]
        for start in range(0, len(kept), size):
            yield decoder.decode(kept[start : start + size])
        yield decoder.decode(b"", final=not self.truncated)

    @property
    def text(self) -> str:
        """Return the whole text, without a standard error that is kept apart."""
        return "".join(self.pieces(len(self._kept[False]) or 1))

    @property
    def end(self) -> str:
        """Return the last bytes that are kept; those of the standard error if it is kept apart and not empty."""
        return (self._kept[True] or self._kept[False])[-TAIL:].decode("utf-8", "replace")


#: The budget of one tenant, in bytes.
LIMIT = 64_000_000


class MemoryQuota:
    """Memory budgets of all tenants, in the memory of this process."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._accounts: dict[TenantId, _Account] = {}

    @contextmanager
    def reserve(self, tenant_id: TenantId) -> Iterator[MemoryReservation]:
        """Return an empty reservation of this tenant; its bytes are released at the end of the context."""
        account = self._accounts.setdefault(tenant_id, _Account(self._limit))
        reservation = MemoryReservation(account)
        account.reservations += 1
        try:
            yield reservation
        finally:
            reservation.close()
            account.reservations -= 1
            if not account.reservations:
                del self._accounts[tenant_id]

    def reserved(self, tenant_id: TenantId) -> int:
        """Return the number of bytes that this tenant's calls have reserved now."""
        account = self._accounts.get(tenant_id)
        return account.reserved if account else 0


@dataclass(slots=True)
class _Account:
    limit: int
    reserved: int = 0
    reservations: int = 0
    #: The one reservation that may exceed the limit.
    exempt: MemoryReservation | None = None
    #: Set, and replaced, whenever bytes are released.
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def fits(self, size: int) -> bool:
        return self.reserved + size <= self.limit

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryReservation:
    """Bytes that one call has reserved in its tenant's budget."""

    def __init__(self, account: _Account) -> None:
        self._account = account
        self._size = 0

    async def take(self, size: int) -> None:
        """Count ``size`` more bytes; wait until the tenant's budget has room for them."""
        while not self.try_reserve(size):
            await self._account.changed.wait()

    def try_reserve(self, size: int) -> bool:
        """Count ``size`` more bytes if there is room; return True if there was."""
        account = self._account
        if not account.fits(size):
            if account.exempt not in (None, self):
                return False
            account.exempt = self
        account.reserved += size
        self._size += size
        return True

    def release(self, size: int) -> None:
        """Count ``size`` fewer bytes."""
        self._account.reserved -= size
        self._size -= size
        self._account.notify()

    def close(self) -> None:
        """Release all bytes."""
        if self._account.exempt is self:
            self._account.exempt = None
        self.release(self._size)


#: Characters at the end of a command's output that are read.
TAIL = 4_000


async def hint_of(application: Application, version: Version, lines: Sequence[str]) -> str:
    """Return what the last lines of an app show to be missing, and where to add it; empty if they do not tell."""
    try:
        bundle = await application.bundles.get(version.bundle_hash)
    except KeyError:
        bundle = None
    code = folder_of(bundle, version.settings.root) if bundle else None
    return await asyncio.to_thread(start_hint, lines, code, version.settings.root)


def hint_of_command(exit_code: int, output: str) -> str:
    """Return what a command's output shows to be missing in the app; empty if it ended well or does not tell.

    Anybody may fail commands all day: to read the version's files for each would take seconds of a large one.
    """
    if exit_code in (0, TIMEOUT_EXIT_CODE):
        return ""
    return start_hint(output[-TAIL:].splitlines(), None)
