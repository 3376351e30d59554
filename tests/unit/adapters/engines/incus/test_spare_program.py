"""A helper's program that waits for its task: taken once, and only while it answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from builderd.adapters.engines.incus.spare_program import SpareProgram

from builderd.adapters.engines.incus import spare_program
from builderd.domain.errors import EngineUnavailable


class Session:
    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.closed = False

    async def write(self, data: bytes) -> None:
        assert data == b"\n"

    async def read(self) -> bytes:
        if self._answer is None:
            await asyncio.Event().wait()
        return self._answer or b""

    async def close(self) -> None:
        self.closed = True


class Starter:
    """Starts programs that answer so; None: they hang, an error: they cannot be started."""

    def __init__(self, answer: bytes | Exception | None = b"{}\n") -> None:
        self.answer = answer
        self.sessions: list[Session] = []

    async def __call__(self) -> Any:
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        self.sessions.append(Session(self.answer))
        return self.sessions[-1]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_program, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(spare_program, "ANSWER_SECONDS", 0.01)


async def prepared(starter: Starter) -> SpareProgram:
    spare = SpareProgram(starter)
    spare.prepare()
    spare.prepare()
    while spare._starting is None:
        await asyncio.sleep(0)
    return spare


async def test_program_that_waits_is_taken_once() -> None:
    starter = Starter()
    spare = await prepared(starter)
    taken: object = await spare.take()
    assert taken is starter.sessions[0]
    assert await spare.take() is None
    assert len(starter.sessions) == 1
    assert not starter.sessions[0].closed


@pytest.mark.parametrize("answer", [b"", b"x", None])
async def test_program_that_does_not_answer_is_ended_and_gets_no_task(answer: bytes | None) -> None:
    starter = Starter(answer)
    spare = await prepared(starter)
    assert await spare.take() is None
    assert starter.sessions[0].closed


async def test_program_that_is_being_started_for_too_long_is_not_waited_for() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    spare = SpareProgram(hang)
    spare.prepare()
    await begun.wait()
    assert await asyncio.wait_for(spare.take(), 10) is None
    assert ended.is_set()


async def test_program_that_could_not_be_started_is_not_missed() -> None:
    spare = await prepared(Starter(EngineUnavailable("away")))
    assert await spare.take() is None
    assert await spare.take() is None


async def test_waiting_program_ends_with_the_service() -> None:
    starter = Starter()
    spare = await prepared(starter)
    while not starter.sessions:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await spare.close()
    assert starter.sessions[0].closed
    spare.prepare()
    await asyncio.sleep(0.01)
    assert spare._starting is None, "a task that ends after that prepares no other"
    await spare.close()
    assert len(starter.sessions) == 1


async def test_caller_that_gives_up_leaves_no_program() -> None:
    starter = Starter(None)
    spare = await prepared(starter)
    taking = asyncio.ensure_future(spare.take())
    while not starter.sessions:
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait({taking})
    assert taking.cancelled()
    assert starter.sessions[0].closed
