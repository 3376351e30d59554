"""Answers of Incus: texts, its words as errors of the service, and programs that it executes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from builderd.core.errors import BuilderdError, EngineUnavailable, InvalidState, NoCapacity, ValidationFailed
from builderd.engine.incus.client import IncusClient, IncusConflict, IncusError, IncusNotFound, PoolFull, error_of
from builderd.engine.incus.image import ASKING, NO_FOLDER, READY
from builderd.engine.incus.process import ExecSession, IncusProcess
from builderd.executions.model import ProcessSpec


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (404, "Instance not found", IncusNotFound),
        (500, "Invalid PID '\ufffd'", IncusNotFound),
        (409, "The network ACL already exists", IncusConflict),
        (500, "UNIQUE constraint failed: projects.name", IncusConflict),
        (500, "no space left on device", PoolFull),
        (500, "unable to create: Disk quota exceeded", NoCapacity),
        (503, "no available cowsql leader server found", EngineUnavailable),
        (500, "Failed to begin transaction: context deadline exceeded", EngineUnavailable),
        (400, 'Failed shutting down instance, status is "Running": context deadline exceeded', IncusError),
        (400, "Invalid config", IncusError),
    ],
)
def test_kind_of_each_answer(status: int, text: str, kind: type[BuilderdError]) -> None:
    error = error_of(status, text, "POST /instances")
    assert type(error) is kind
    assert text in error.message


def test_full_pool_is_named_without_paths_of_its_member() -> None:
    error = error_of(500, "write /var/lib/incus/backup.yaml: no space left on device", "GET /operations/1/wait")
    assert "storage pool of Incus is full (no space left on device)" in error.message


REPORT = READY + b"17\n"
#: More than the wrapper itself ever writes.
LONG = b"x" * 65_000


class Session:
    """An exec session whose output comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.ended = self.closed = self.is_terminal = False

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def write(self, data: bytes) -> None: ...

    async def close_input(self) -> None: ...

    async def hang_up_terminal(self) -> None: ...

    async def wait(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True


def started(monkeypatch: pytest.MonkeyPatch, *pieces: bytes) -> tuple[IncusProcess, Session]:
    session = Session(list(pieces))

    async def answer(*_: Any) -> Session:
        return session

    monkeypatch.setattr(ExecSession, "open", answer)
    return IncusProcess(cast("IncusClient", None), "s-1", ProcessSpec(("true",))), session


@pytest.mark.parametrize(
    "pieces",
    [
        (ASKING, REPORT + LONG),
        (ASKING, REPORT[:2], REPORT[2:] + LONG),
        (ASKING + REPORT + LONG,),
        (ASKING, REPORT + b"it ends like no folder" + NO_FOLDER),
    ],
)
async def test_output_in_one_piece_with_the_report_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    process, _ = started(monkeypatch, *pieces)
    await process.begin()
    assert await process.read() == b"".join(pieces).partition(REPORT)[2]


@pytest.mark.parametrize(
    ("pieces", "refusal"),
    [
        ((ASKING, NO_FOLDER), ValidationFailed),
        ((ASKING, b"setpriv: failed"), InvalidState),
        ((ASKING,), InvalidState),
        ((), InvalidState),
        ((LONG, ASKING), InvalidState),
        ((ASKING, LONG, REPORT), InvalidState),
    ],
)
async def test_command_without_a_report_is_refused_and_closed(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...], refusal: type[BuilderdError]
) -> None:
    process, session = started(monkeypatch, *pieces)
    with pytest.raises(refusal):
        await process.begin()
    assert session.closed
