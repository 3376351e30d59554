"""Process in memory, scripted by an ``Answer``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from builderd.executions.model import ProcessSpec, Window

KILLED = 137


@dataclass(frozen=True, slots=True)
class Answer:
    """Script of a process: its output, exit code, and duration in seconds.

    ``echoes``: the process writes what it reads, and ends with its input. ``no_folder``: its working directory is no
    folder.
    """

    exit_code: int = 0
    output: str = ""
    seconds: float = 0
    errors: str = ""
    echoes: bool = False
    no_folder: bool = False


class FakeProcess:
    """Implements ``ports.engine.Process``. ``windows`` lists the sizes of its terminal, oldest first."""

    def __init__(self, answer: Answer, spec: ProcessSpec) -> None:
        joined = spec.joined or spec.window is not None
        self._answer = answer
        self._output = answer.output.encode() + (answer.errors.encode() if joined else b"")
        self._errors = b"" if joined else answer.errors.encode()
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.windows = [spec.window] if spec.window else []
        if not answer.echoes:
            asyncio.get_running_loop().call_later(answer.seconds, self._end, answer.exit_code)

    async def read(self) -> bytes:
        if self._output:
            output, self._output = self._output, b""
            return output
        if not self._answer.echoes:
            await asyncio.shield(self._ended)
            return b""
        return await self._echo()

    async def _echo(self) -> bytes:
        if self._ended.done():
            return b""
        typed = asyncio.ensure_future(self._typed.get())
        either: set[asyncio.Future[Any]] = {typed, self._ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if typed.done() and typed.result():
            return typed.result()
        typed.cancel()
        self._end(self._answer.exit_code)
        return b""

    async def read_errors(self) -> bytes:
        errors, self._errors = self._errors, b""
        return errors

    async def write(self, data: bytes) -> None:
        if data:
            self._typed.put_nowait(data)

    def close_input(self) -> None:
        self._typed.put_nowait(b"")

    def resize(self, window: Window) -> None:
        if self.windows:
            self.windows.append(window)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        self._end(KILLED)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)
